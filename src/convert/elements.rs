//! Elements of two tensors of one type held against each other: how many have other
//! bits, and how far their values lie apart.

use std::cmp::Ordering;

use safetensors::Dtype;

/// How elements differ.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tally {
    /// Elements whose bits are not the same.
    pub different: u64,
    /// Of these, where both are numbers, the largest distance of two values.
    pub largest: Option<Distance>,
    /// Of these, where only one is NaN.
    pub one_nan: u64,
    /// Of these, where both are NaN.
    pub both_nan: u64,
}

/// How far two values lie apart: the absolute value of their difference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Distance {
    Integer(u64),
    /// Never NaN. Zero for 0.0 and -0.0, infinite where one value is.
    Float(f64),
}

/// What is counted of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    Elements,
    /// The elements have no agreed place among the bits.
    Bytes,
}

impl Unit {
    pub fn of(dtype: Dtype) -> Unit {
        match counting(dtype) {
            Some(_) => Unit::Elements,
            None => Unit::Bytes,
        }
    }
}

impl Tally {
    /// The elements in `a` against those in `b`, a whole number of them on either side.
    pub fn of(dtype: Dtype, a: &[u8], b: &[u8]) -> Tally {
        if a == b {
            return Tally::default();
        }
        match counting(dtype) {
            Some(count) => count(a, b),
            None => Tally {
                different: a.iter().zip(b).filter(|(a, b)| a != b).count() as u64,
                ..Tally::default()
            },
        }
    }

    /// Both together.
    pub fn and(self, other: Tally) -> Tally {
        let largest = match (self.largest, other.largest) {
            (Some(a), Some(b)) if b > a => Some(b),
            (a, b) => a.or(b),
        };
        Tally {
            different: self.different + other.different,
            largest,
            one_nan: self.one_nan + other.one_nan,
            both_nan: self.both_nan + other.both_nan,
        }
    }
}

impl PartialOrd for Distance {
    fn partial_cmp(&self, other: &Distance) -> Option<Ordering> {
        match (self, other) {
            (Distance::Integer(a), Distance::Integer(b)) => a.partial_cmp(b),
            (Distance::Float(a), Distance::Float(b)) => a.partial_cmp(b),
            _ => None,
        }
    }
}

type Count = fn(&[u8], &[u8]) -> Tally;

/// How elements of a type are counted; None for those of which nobody says where in
/// the bytes they lie (`F6_*`), and for types that are not known here.
fn counting(dtype: Dtype) -> Option<Count> {
    Some(match dtype {
        Dtype::BOOL | Dtype::U8 => |a, b| integers(a, b, |a: u8, b| a.abs_diff(b).into(), |[x]| x),
        Dtype::I8 => |a, b| integers(a, b, |a, b| a.abs_diff(b).into(), i8::from_le_bytes),
        Dtype::U16 => |a, b| integers(a, b, |a, b| a.abs_diff(b).into(), u16::from_le_bytes),
        Dtype::I16 => |a, b| integers(a, b, |a, b| a.abs_diff(b).into(), i16::from_le_bytes),
        Dtype::U32 => |a, b| integers(a, b, |a, b| a.abs_diff(b).into(), u32::from_le_bytes),
        Dtype::I32 => |a, b| integers(a, b, |a, b| a.abs_diff(b).into(), i32::from_le_bytes),
        Dtype::U64 => |a, b| integers(a, b, u64::abs_diff, u64::from_le_bytes),
        Dtype::I64 => |a, b| integers(a, b, i64::abs_diff, i64::from_le_bytes),
        Dtype::F64 => |a, b| floats(a, b, f64::from_le_bytes),
        Dtype::F32 => |a, b| floats(a, b, |bytes| f32::from_le_bytes(bytes).into()),
        Dtype::BF16 => |a, b| {
            floats(a, b, |[low, high]| {
                f32::from_le_bytes([0, 0, low, high]).into()
            })
        },
        Dtype::F16 => |a, b| floats(a, b, |bytes| small(u16::from_le_bytes(bytes).into(), F16)),
        Dtype::F8_E5M2 => |a, b| bytes(a, b, |byte| small(byte.into(), E5M2)),
        Dtype::F8_E4M3 => |a, b| bytes(a, b, |byte| small(byte.into(), E4M3)),
        Dtype::F8_E5M2FNUZ => |a, b| bytes(a, b, |byte| small(byte.into(), E5M2FNUZ)),
        Dtype::F8_E4M3FNUZ => |a, b| bytes(a, b, |byte| small(byte.into(), E4M3FNUZ)),
        Dtype::F8_E8M0 => |a, b| bytes(a, b, power_of_two),
        Dtype::F4 => nibbles,
        Dtype::C64 => complex,
        _ => return None,
    })
}

/// Pairs of elements with other bits.
fn differing<'a, const N: usize>(
    a: &'a [u8],
    b: &'a [u8],
) -> impl Iterator<Item = ([u8; N], [u8; N])> + 'a {
    let pairs = a.as_chunks().0.iter().zip(b.as_chunks().0);
    pairs.filter(|(a, b)| a != b).map(|(a, b)| (*a, *b))
}

fn integers<const N: usize, T>(
    a: &[u8],
    b: &[u8],
    distance: impl Fn(T, T) -> u64,
    value: impl Fn([u8; N]) -> T,
) -> Tally {
    let (mut different, mut largest) = (0, 0);
    for (a, b) in differing(a, b) {
        different += 1;
        largest = distance(value(a), value(b)).max(largest);
    }
    Tally {
        different,
        largest: (different > 0).then_some(Distance::Integer(largest)),
        ..Tally::default()
    }
}

fn floats<const N: usize>(a: &[u8], b: &[u8], value: impl Fn([u8; N]) -> f64) -> Tally {
    let mut tally = Floats::default();
    for (a, b) in differing(a, b) {
        let (a, b) = (value(a), value(b));
        tally.add(a.is_nan(), b.is_nan(), || (a - b).abs());
    }
    tally.finish()
}

/// Floats of eight bits, of which there are few enough to know all values beforehand.
fn bytes(a: &[u8], b: &[u8], value: impl Fn(u8) -> f64) -> Tally {
    let mut values = [0.0; 256];
    for (byte, place) in (0..=u8::MAX).zip(&mut values) {
        *place = value(byte);
    }
    floats(a, b, |[byte]| values[usize::from(byte)])
}

/// The distance of two complex numbers is the modulus of their difference; one with a
/// part that is NaN counts as NaN.
fn complex(a: &[u8], b: &[u8]) -> Tally {
    let parts = |[a, b, c, d, e, f, g, h]: [u8; 8]| {
        let (re, im) = (
            f32::from_le_bytes([a, b, c, d]),
            f32::from_le_bytes([e, f, g, h]),
        );
        (f64::from(re), f64::from(im))
    };
    let is_nan = |(re, im): (f64, f64)| re.is_nan() || im.is_nan();
    let mut tally = Floats::default();
    for (a, b) in differing(a, b) {
        let (a, b) = (parts(a), parts(b));
        tally.add(is_nan(a), is_nan(b), || {
            apart(a.0, b.0).hypot(apart(a.1, b.1))
        });
    }
    tally.finish()
}

/// Two to a byte, each a sign, two bits of exponent and one of mantissa.
fn nibbles(a: &[u8], b: &[u8]) -> Tally {
    let mut tally = Floats::default();
    for ([a], [b]) in differing(a, b) {
        for (a, b) in [(a & 0xf, b & 0xf), (a >> 4, b >> 4)] {
            if a != b {
                let (a, b) = (small(a.into(), E2M1), small(b.into(), E2M1));
                tally.add(false, false, || (a - b).abs());
            }
        }
    }
    tally.finish()
}

#[derive(Default)]
struct Floats {
    tally: Tally,
    largest: f64,
}

impl Floats {
    fn add(&mut self, a_nan: bool, b_nan: bool, distance: impl FnOnce() -> f64) {
        self.tally.different += 1;
        match (a_nan, b_nan) {
            (false, false) => self.largest = self.largest.max(distance()),
            (true, true) => self.tally.both_nan += 1,
            _ => self.tally.one_nan += 1,
        }
    }

    fn finish(self) -> Tally {
        let numbers = self.tally.different - self.tally.one_nan - self.tally.both_nan;
        Tally {
            largest: (numbers > 0).then_some(Distance::Float(self.largest)),
            ..self.tally
        }
    }
}

/// The distance of two numbers, of which infinities may be one.
fn apart(a: f64, b: f64) -> f64 {
    match a == b {
        true => 0.0,
        false => (a - b).abs(),
    }
}

/// A float of at most 16 bits: sign, exponent, mantissa.
#[derive(Clone, Copy)]
struct Small {
    /// Bits.
    mantissa: u32,
    /// Bits.
    exponent: u32,
    bias: u32,
    special: Special,
}

/// Which bits are no numbers.
#[derive(Clone, Copy)]
enum Special {
    None,
    /// The largest exponent is that of infinity and NaN.
    Ieee,
    /// All bits but the sign are set in NaN; there is no infinity.
    AllOnes,
    /// NaN is where -0.0 would be; there is no infinity.
    NegativeZero,
}

const fn small_type(exponent: u32, mantissa: u32, bias: u32, special: Special) -> Small {
    Small {
        mantissa,
        exponent,
        bias,
        special,
    }
}

const F16: Small = small_type(5, 10, 15, Special::Ieee);
const E5M2: Small = small_type(5, 2, 15, Special::Ieee);
const E4M3: Small = small_type(4, 3, 7, Special::AllOnes);
const E5M2FNUZ: Small = small_type(5, 2, 16, Special::NegativeZero);
const E4M3FNUZ: Small = small_type(4, 3, 8, Special::NegativeZero);
const E2M1: Small = small_type(2, 1, 1, Special::None);

/// The value of a float that these bits are in the format `of`.
#[inline]
fn small(bits: u32, of: Small) -> f64 {
    let sign_bit = 1 << (of.exponent + of.mantissa);
    let magnitude = bits & (sign_bit - 1);
    let infinite = ((1 << of.exponent) - 1) << of.mantissa;
    match of.special {
        Special::Ieee if magnitude > infinite => return f64::NAN,
        Special::AllOnes if magnitude == sign_bit - 1 => return f64::NAN,
        Special::NegativeZero if bits == sign_bit => return f64::NAN,
        _ => {}
    }
    // Weights are of either sign, and small ones below the normal numbers: nothing here
    // depends on a guess of a processor, nor on its slow path for such numbers.
    let normal = f32::from_bits((magnitude << (23 - of.mantissa)) + ((127 - of.bias) << 23));
    let step = f32::from_bits((127 + 1 - of.bias - of.mantissa) << 23);
    let subnormal = magnitude as f32 * step;
    let value = match of.special {
        Special::Ieee if magnitude == infinite => f32::INFINITY,
        _ if magnitude >> of.mantissa == 0 => subnormal,
        _ => normal,
    };
    let sign = (bits & sign_bit) << (31 - of.exponent - of.mantissa);
    f32::from_bits(value.to_bits() | sign).into()
}

/// `F8_E8M0` is an exponent alone; its last value is NaN.
fn power_of_two(exponent: u8) -> f64 {
    match exponent {
        u8::MAX => f64::NAN,
        // 127 is the bias of the one, 1023 that of the other.
        exponent => f64::from_bits((u64::from(exponent) + 1023 - 127) << 52),
    }
}
