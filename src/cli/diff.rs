//! `stfs diff`.

use std::fmt::{self, Display};
use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use super::open::open;
use super::progress::progress_bar;
use super::{Failure, FileError, Printable, finish, shape};
use crate::convert::compare::{
    Comparison, Difference, Distance, Failed, Pairs, Side, Tally, Type, Unit, What,
};

/// Compare the tensors of two files
///
/// Each is a checkpoint of any kind or a .safetensors file; nothing in them runs. Says
/// which tensors only one of them has, and which differ in type, shape or bytes. It does
/// not matter which names of tied weights a file has kept.
///
/// Elements differ when their bits do. The largest difference is that of two numbers, NaN
/// being none; of complex numbers it is the modulus.
///
/// Exit status: 0 the same weights, 1 different ones, 2 trouble.
#[derive(Args)]
#[command(after_help = "Example:\n  stfs diff pytorch_model.bin model.safetensors")]
pub struct Arguments {
    /// A checkpoint or a .safetensors file
    pub a: PathBuf,
    /// What to compare it with
    pub b: PathBuf,
    /// Print JSON: one object with all differences
    ///
    /// The largest difference of a tensor is a number, or "inf", or null where no two
    /// numbers differ: bits of NaN, or of types whose elements are not told apart.
    #[arg(long)]
    pub json: bool,
    /// Take the tensors below this dotted path of checkpoints, such as `ema`
    #[arg(long, value_name = "KEY")]
    pub root: Option<String>,
}

pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    match compare(arguments) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Failure::No),
        Err(Failure::Failed(error)) => Err(Failure::Trouble(error)),
        Err(failure) => Err(failure),
    }
}

/// Says what differs, and whether nothing does.
fn compare(arguments: &Arguments) -> Result<bool, Failure> {
    let root = arguments.root.as_deref();
    let (a, b) = (open(&arguments.a, root)?, open(&arguments.b, root)?);
    let failed = |failed: Failed| match failed.side {
        Side::A => FileError::new(&arguments.a, failed.error),
        Side::B => FileError::new(&arguments.b, failed.error),
    };
    let pairs = Pairs::find(&a, &b).map_err(failed)?;
    let bar = progress_bar(pairs.bytes(), true);
    bar.set_message(Printable(paths(arguments)).to_string());
    let compared = pairs.compare(&|bytes| bar.inc(bytes));
    bar.finish_and_clear();
    let comparison = compared.map_err(failed)?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    let written = match arguments.json {
        true => writeln!(out, "{:#}", describe(arguments, &comparison)),
        false => list(&mut out, &comparison),
    };
    finish(written.and_then(|()| out.flush()))?;
    Ok(comparison.is_equal())
}

fn paths(arguments: &Arguments) -> String {
    format!("{} and {}", arguments.a.display(), arguments.b.display())
}

/// A line for each difference, and one that sums up.
fn list(out: &mut impl Write, comparison: &Comparison) -> io::Result<()> {
    for difference in &comparison.differences {
        let kind = Kind::of(difference);
        let name = Printable(difference.names.join(" = "));
        write!(out, "{}: {name}  ", kind.label())?;
        match &difference.what {
            What::Only(_, of) => writeln!(out, "{} {}", of.dtype, shape(&of.shape)),
            What::Type(a, b) => match kind {
                Kind::Type => writeln!(out, "{} against {}", a.dtype, b.dtype),
                Kind::Shape => writeln!(out, "{} against {}", shape(&a.shape), shape(&b.shape)),
                _ => {
                    let (in_a, in_b) = (shape(&a.shape), shape(&b.shape));
                    writeln!(out, "{} {in_a} against {} {in_b}", a.dtype, b.dtype)
                }
            },
            What::Bytes {
                tally, unit, count, ..
            } => writeln!(out, "{}", Counted(tally, *unit, *count)),
        }?;
    }
    let (equal, bytes) = (comparison.equal, comparison.equal_bytes);
    if comparison.is_equal() {
        return writeln!(out, "the same weights: {equal} tensors, {bytes} bytes");
    }
    let counts = Kind::ALL.into_iter().filter_map(|kind| {
        let of_kind = |difference: &&Difference| Kind::of(difference) == kind;
        match comparison.differences.iter().filter(of_kind).count() {
            0 => None,
            count => Some(format!("{count} {}", kind.counted())),
        }
    });
    let counts: Vec<String> = counts.collect();
    writeln!(out, "different: {}; {equal} equal", counts.join(", "))
}

/// The kinds of differences, as they are told apart for people.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    OnlyInA,
    OnlyInB,
    Type,
    Shape,
    TypeAndShape,
    Bytes,
}

impl Kind {
    const ALL: [Kind; 6] = [
        Kind::OnlyInA,
        Kind::OnlyInB,
        Kind::Type,
        Kind::Shape,
        Kind::TypeAndShape,
        Kind::Bytes,
    ];

    fn of(difference: &Difference) -> Kind {
        match &difference.what {
            What::Only(Side::A, _) => Kind::OnlyInA,
            What::Only(Side::B, _) => Kind::OnlyInB,
            What::Type(a, b) if a.dtype == b.dtype => Kind::Shape,
            What::Type(a, b) if a.shape == b.shape => Kind::Type,
            What::Type(..) => Kind::TypeAndShape,
            What::Bytes { .. } => Kind::Bytes,
        }
    }

    /// In front of a tensor.
    fn label(self) -> &'static str {
        match self {
            Kind::OnlyInA => "only in A",
            Kind::OnlyInB => "only in B",
            Kind::Type => "other type",
            Kind::Shape => "other shape",
            Kind::TypeAndShape => "other type and shape",
            Kind::Bytes => "other bytes",
        }
    }

    /// Behind a number of them.
    fn counted(self) -> &'static str {
        match self {
            Kind::OnlyInA => "only in A",
            Kind::OnlyInB => "only in B",
            Kind::Type => "of another type",
            Kind::Shape => "of another shape",
            Kind::TypeAndShape => "of another type and shape",
            Kind::Bytes => "with other bytes",
        }
    }
}

/// How many elements differ, of so many, and by how much.
struct Counted<'a>(&'a Tally, Unit, u64);

impl Display for Counted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counted(tally, unit, count) = self;
        let what = unit_name(*unit);
        write!(f, "{} of {count} {what}", tally.different)?;
        match tally.largest {
            // Other bits without a distance.
            Some(Distance::Float(0.0)) => f.write_str(", largest difference 0 (0.0 and -0.0)")?,
            Some(Distance::Float(distance)) => write!(f, ", largest difference {distance:?}")?,
            Some(Distance::Integer(distance)) => write!(f, ", largest difference {distance}")?,
            None => {}
        }
        if tally.one_nan > 0 {
            write!(f, ", {} are NaN on one side only", tally.one_nan)?;
        }
        if tally.both_nan > 0 {
            write!(f, ", {} are NaN with other bits", tally.both_nan)?;
        }
        Ok(())
    }
}

fn describe(arguments: &Arguments, comparison: &Comparison) -> Value {
    let of_kinds = |wanted: &[Kind]| -> Vec<Value> {
        let differences = comparison.differences.iter();
        let wanted = differences.filter(|difference| wanted.contains(&Kind::of(difference)));
        wanted.map(entry).collect()
    };
    json!({
        "a": arguments.a.to_string_lossy(),
        "b": arguments.b.to_string_lossy(),
        "equal": comparison.is_equal(),
        "tensors_equal": comparison.equal,
        "bytes_equal": comparison.equal_bytes,
        "only_in_a": of_kinds(&[Kind::OnlyInA]),
        "only_in_b": of_kinds(&[Kind::OnlyInB]),
        "different": of_kinds(&[Kind::Type, Kind::Shape, Kind::TypeAndShape, Kind::Bytes]),
    })
}

fn entry(difference: &Difference) -> Value {
    let names = difference.names.split_first();
    let (name, also) = names.map_or((None, &[][..]), |(name, also)| (Some(name), also));
    let mut entry = json!({"name": name, "also": also});
    let is = |of: &Type| json!({"dtype": of.dtype.to_string(), "shape": of.shape});
    match &difference.what {
        What::Only(_, of) => {
            entry["dtype"] = of.dtype.to_string().into();
            entry["shape"] = json!(of.shape);
        }
        What::Type(a, b) => {
            entry["what"] = match Kind::of(difference) {
                Kind::Type => "dtype",
                Kind::Shape => "shape",
                _ => "dtype and shape",
            }
            .into();
            (entry["a"], entry["b"]) = (is(a), is(b));
        }
        What::Bytes {
            of,
            tally,
            unit,
            count,
        } => {
            entry["what"] = "bytes".into();
            (entry["a"], entry["b"]) = (is(of), is(of));
            entry["unit"] = unit_name(*unit).into();
            entry["count"] = (*count).into();
            entry["different"] = tally.different.into();
            entry["largest_difference"] = distance(tally.largest);
            entry["nan_on_one_side"] = tally.one_nan.into();
            entry["nan_with_other_bits"] = tally.both_nan.into();
        }
    }
    entry
}

fn unit_name(unit: Unit) -> &'static str {
    match unit {
        Unit::Elements => "elements",
        Unit::Bytes => "bytes",
    }
}

/// JSON has no infinity: that is the text "inf". Null where no two numbers differ.
fn distance(largest: Option<Distance>) -> Value {
    match largest {
        None => Value::Null,
        Some(Distance::Integer(distance)) => distance.into(),
        Some(Distance::Float(f64::INFINITY)) => "inf".into(),
        Some(Distance::Float(distance)) => distance.into(),
    }
}
