//! Tensors whose elements do not lie row by row: any block of their row-major form,
//! put together in bounded memory out of the bytes of a storage.

use crate::checkpoint::{Lazy, Numeric, Tensor, numeric};
use crate::source::Result;
use safetensors::Dtype;

/// A run of elements with gaps is read in one piece up to this many bytes.
const SPAN: u64 = 256 << 10;

/// Reads bytes of a storage: fills the buffer with those from an offset on.
pub type Fetch<'a> = dyn Fn(&mut [u8], u64) -> Result<()> + 'a;

/// Elements of a storage at even distances along each dimension.
#[derive(Clone, Debug)]
pub struct Strided {
    /// Bytes from the start of the storage to the first element.
    start: u64,
    /// Bytes of one element.
    element: u64,
    /// Dimensions of more than one element, neighbours joined where one step of
    /// the outer is the whole of the inner.
    axes: Box<[Axis]>,
    dtype: Dtype,
    lazy: Lazy,
}

/// One dimension.
#[derive(Clone, Copy, Debug)]
struct Axis {
    /// Elements.
    size: u64,
    /// Elements from one to the next, in the source.
    stride: u64,
}

impl Strided {
    /// The elements that `tensor` is of its storage.
    pub fn new(tensor: &Tensor) -> Strided {
        let mut axes: Vec<Axis> = Vec::with_capacity(tensor.shape.len());
        for (&size, &stride) in tensor.shape.iter().zip(&tensor.strides) {
            if size == 1 {
                continue;
            }
            match axes.last_mut() {
                Some(outer) if size.checked_mul(stride) == Some(outer.stride) => {
                    outer.size *= size;
                    outer.stride = stride;
                }
                _ => axes.push(Axis { size, stride }),
            }
        }
        Strided {
            start: tensor.offset,
            element: tensor.element_size(),
            axes: axes.into(),
            dtype: tensor.dtype,
            lazy: tensor.lazy,
        }
    }

    /// Where the tensor begins in its storage, when its row-major bytes lie there
    /// as they are.
    pub fn contiguous(&self) -> Option<u64> {
        let rows = matches!(*self.axes, [] | [Axis { stride: 1, .. }]);
        (rows && self.lazy == Lazy::default()).then_some(self.start)
    }

    /// Bytes of one element.
    pub fn element(&self) -> u64 {
        self.element
    }

    /// Fills `out` with the elements from number `first` on, in row-major order.
    /// `out` is a whole number of elements.
    pub fn read(&self, fetch: &Fetch, first: u64, out: &mut [u8]) -> Result<()> {
        let count = out.len() as u64 / self.element;
        let mut scratch = Vec::new();
        for slab in slabs(&self.axes, first, count) {
            let at = (slab.first - first) * self.element;
            let len = slab.elements() * self.element;
            // Both are inside `out`, whose length is a usize.
            let part = &mut out[at as usize..(at + len) as usize];
            self.read_slab(fetch, &slab, part, &mut scratch)?;
        }
        self.finish(out);
        Ok(())
    }

    /// Reads a box of elements into `out`, in runs along the axis whose elements
    /// lie closest in the source.
    fn read_slab(
        &self,
        fetch: &Fetch,
        slab: &Slab,
        out: &mut [u8],
        scratch: &mut Vec<u8>,
    ) -> Result<()> {
        // An expanded axis, whose elements are all one, only when there is no other.
        let distance = |axis: &usize| match self.axes[*axis].stride {
            0 => u64::MAX,
            stride => stride,
        };
        let run_axis = (0..self.axes.len())
            .filter(|&axis| slab.sizes[axis] > 1)
            .min_by_key(distance);
        let mut runs = Odometer::new(&slab.sizes, run_axis);
        let element = self.element as usize;
        loop {
            let (mut from, mut to) = (0, 0);
            let mut row = 1;
            let mut run = Run {
                count: 1,
                stride: 1,
                step: 1,
            };
            for axis in (0..self.axes.len()).rev() {
                let index = runs.index[axis];
                from += (slab.start[axis] + index) * self.axes[axis].stride;
                to += index * row;
                if Some(axis) == run_axis {
                    run = Run {
                        count: slab.sizes[axis],
                        stride: self.axes[axis].stride,
                        step: row,
                    };
                }
                row *= slab.sizes[axis];
            }
            let out = &mut out[to as usize * element..];
            let from = self.start + from * self.element;
            let fetch = |buffer: &mut [u8], offset| fetch(buffer, from + offset);
            run.read(&fetch, element, out, scratch)?;
            if !runs.advance() {
                return Ok(());
            }
        }
    }

    /// Does what is lazy about the elements. Truth values become 0 and 1, as where
    /// torch gathers them; bytes that lie as they should are nobody's to change.
    fn finish(&self, out: &mut [u8]) {
        if self.dtype == Dtype::BOOL && self.contiguous().is_none() {
            out.iter_mut().for_each(|byte| *byte = u8::from(*byte != 0));
        }
        let part = match numeric(self.dtype) {
            Numeric::Complex => self.element as usize / 2,
            _ => self.element as usize,
        };
        if self.lazy.swap {
            out.chunks_exact_mut(part).for_each(<[u8]>::reverse);
        }
        // Little-endian: the sign is the top bit of a number's last byte.
        let flip = |number: &mut [u8]| {
            if let Some(top) = number.last_mut() {
                *top ^= 0x80;
            }
        };
        if self.lazy.negate {
            out.chunks_exact_mut(part).for_each(flip);
        }
        if self.lazy.conjugate {
            out.chunks_exact_mut(part).skip(1).step_by(2).for_each(flip);
        }
    }
}

/// Elements at even distances, in the source and in the block.
struct Run {
    count: u64,
    /// Elements from one to the next, in the source.
    stride: u64,
    /// Elements from one to the next, in the block.
    step: u64,
}

impl Run {
    /// Reads the run into `out`. `fetch` reads from the run's first byte on.
    fn read(
        &self,
        fetch: &Fetch,
        element: usize,
        out: &mut [u8],
        scratch: &mut Vec<u8>,
    ) -> Result<()> {
        let distance = self.stride * element as u64;
        let step = self.step as usize * element;
        if self.stride == 1 && self.step == 1 {
            let len = self.count as usize * element;
            return fetch(&mut out[..len], 0);
        }
        // As many elements at a time as a piece of the source may hold.
        let at_once = match SPAN.checked_div(distance) {
            Some(most) => most.clamp(1, self.count),
            None => self.count,
        };
        let mut done = 0;
        while done < self.count {
            let count = at_once.min(self.count - done);
            let span = ((count - 1) * distance) as usize + element;
            scratch.resize(span, 0);
            fetch(scratch, done * distance)?;
            for index in 0..count as usize {
                let value = &scratch[index * distance as usize..][..element];
                out[(done as usize + index) * step..][..element].copy_from_slice(value);
            }
            done += count;
        }
        Ok(())
    }
}

/// A box of elements that are neighbours in row-major order.
struct Slab {
    /// Number of its first element.
    first: u64,
    /// Index of its first element, by axis.
    start: Vec<u64>,
    /// Elements, by axis.
    sizes: Vec<u64>,
}

impl Slab {
    fn elements(&self) -> u64 {
        self.sizes.iter().product()
    }
}

/// Cuts the elements `[first, first + count)` into boxes: at most two for each
/// axis.
fn slabs(axes: &[Axis], first: u64, count: u64) -> Vec<Slab> {
    let mut slabs = Vec::new();
    let mut at = first;
    let end = first + count;
    while at < end {
        let mut start = vec![0; axes.len()];
        let mut rest = at;
        for (index, axis) in start.iter_mut().zip(axes).rev() {
            *index = rest % axis.size;
            rest /= axis.size;
        }
        // The outermost axis along which a box can begin here: all inner indices
        // are zero, and one step along it still fits.
        let mut step = 1;
        let mut sizes = vec![1; axes.len()];
        for axis in (0..axes.len()).rev() {
            let left = axes[axis].size - start[axis];
            let fits = ((end - at) / step).min(left);
            sizes[axis] = fits;
            if start[axis] != 0 || fits < axes[axis].size {
                break;
            }
            step *= axes[axis].size;
        }
        let slab = Slab {
            first: at,
            start,
            sizes,
        };
        at += slab.elements();
        slabs.push(slab);
    }
    slabs
}

/// Counts through all indices of a box, but for one axis.
struct Odometer<'a> {
    sizes: &'a [u64],
    skip: Option<usize>,
    index: Vec<u64>,
}

impl<'a> Odometer<'a> {
    fn new(sizes: &'a [u64], skip: Option<usize>) -> Odometer<'a> {
        Odometer {
            sizes,
            skip,
            index: vec![0; sizes.len()],
        }
    }

    fn advance(&mut self) -> bool {
        for axis in (0..self.sizes.len()).rev() {
            if Some(axis) == self.skip {
                continue;
            }
            self.index[axis] += 1;
            if self.index[axis] < self.sizes[axis] {
                return true;
            }
            self.index[axis] = 0;
        }
        false
    }
}
