//! Feature maps in the device's memory: their shape, memory and elements.

use crate::element::{from_bf16, from_f16};
use crate::kernel_args::{Arg, In, Out, Pointee, Readable, Writable, args};
use crate::memory::run_accessors;
use crate::{Buffer, Context, Element, Error, Result, View, ViewMut};
use std::marker::PhantomData;

/// The shape of feature maps, (N, H, W, C) with contiguous channels. The rows of a matrix are maps of one
/// pixel each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapShape {
    /// Images.
    pub batch: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// Channels.
    pub channels: usize,
}

impl MapShape {
    /// The rows of a matrix.
    pub fn matrix(rows: usize, cols: usize) -> Self {
        MapShape { batch: rows, height: 1, width: 1, channels: cols }
    }

    /// The number of pixels of all images.
    pub fn pixels(&self) -> usize {
        self.batch * self.height * self.width
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.pixels() * self.channels
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Checks that all slices hold maps of this shape, of one element type, which is returned. Kernels count
    /// elements in 32 bits.
    pub(crate) fn check(&self, operation: &'static str, slices: &[MapSlice<'_>]) -> Result<Element> {
        let n = self.len();
        let element = slices.first().map_or(Element::F32, |s| s.element);
        if n > 0 && n <= u32::MAX as usize && slices.iter().all(|s| s.len >= n && s.element == element) {
            return Ok(element);
        }
        let slices: Vec<String> = slices.iter().map(|s| format!("{} of {:?}", s.len, s.element)).collect();
        let message =
            format!("{self:?} in {}: at most 2³² − 1 elements, and at least one", slices.join(", "));
        Err(Error::Length { operation, message })
    }
}

/// Memory of feature maps.
#[derive(Debug)]
pub struct FeatureMap {
    words: Buffer,
    len: usize,
    element: Element,
}

impl FeatureMap {
    /// Uninitialized memory: the caller writes it before reading it.
    ///
    /// # Errors
    /// If the device is out of memory.
    pub fn uninit(on: &Context, len: usize, element: Element) -> Result<Self> {
        let words = Buffer::uninit(on, (len * element.bytes()).div_ceil(size_of::<f32>()))?;
        Ok(FeatureMap { words, len, element })
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The type of its elements.
    pub fn element(&self) -> Element {
        self.element
    }

    /// A copy in host memory. Waits for the device.
    ///
    /// # Errors
    /// If the device fails.
    pub fn to_host(&self) -> Result<Vec<f32>> {
        let words = self.words.to_host()?;
        let decode = match self.element {
            Element::F32 => return Ok(words),
            Element::Bf16 => from_bf16,
            Element::F16 => from_f16,
        };
        let halves = words.iter().map(|w| w.to_bits()).flat_map(|w| [w as u16, (w >> 16) as u16]);
        Ok(halves.map(decode).take(self.len).collect())
    }

    /// All elements, borrowed.
    pub fn slice(&self) -> MapSlice<'_> {
        MapSlice { address: self.words.address(), len: self.len, element: self.element, owner: PhantomData }
    }

    /// All elements, mutably borrowed.
    pub fn slice_mut(&mut self) -> MapSliceMut<'_> {
        let (address, len, element) = (self.words.address(), self.len, self.element);
        MapSliceMut { address, len, element, owner: PhantomData }
    }
}

/// A borrowed run of elements.
#[derive(Clone, Copy, Debug)]
pub struct MapSlice<'a> {
    address: u64,
    len: usize,
    element: Element,
    owner: PhantomData<&'a FeatureMap>,
}

/// A mutably borrowed run of elements.
#[derive(Debug)]
pub struct MapSliceMut<'a> {
    address: u64,
    len: usize,
    element: Element,
    owner: PhantomData<&'a mut FeatureMap>,
}

run_accessors!(MapSlice, MapSliceMut);

/// The element type of borrowed runs, and what they are as arguments of kernels.
macro_rules! map_slice {
    ($($slice:ident: $side:ident),*) => { $(
        impl $slice<'_> {
            /// The type of the elements.
            pub fn element(&self) -> Element {
                self.element
            }
        }

        impl $side for $slice<'_> {
            fn address(&self) -> u64 {
                self.address
            }
            fn pointee(&self) -> Pointee {
                match self.element {
                    Element::F32 => Pointee::F32,
                    Element::Bf16 | Element::F16 => Pointee::Half,
                }
            }
        }
    )* };
}
map_slice!(MapSlice: Readable, MapSliceMut: Writable);

impl<'a> From<View<'a>> for MapSlice<'a> {
    fn from(v: View<'a>) -> Self {
        MapSlice { address: v.address(), len: v.len(), element: Element::F32, owner: PhantomData }
    }
}

impl<'a> From<ViewMut<'a>> for MapSliceMut<'a> {
    fn from(v: ViewMut<'a>) -> Self {
        MapSliceMut { address: v.address(), len: v.len(), element: Element::F32, owner: PhantomData }
    }
}

impl<'a> MapSlice<'a> {
    /// At most `len` elements from element `from` on: fewer if there are not as many.
    pub(crate) fn part(self, from: usize, len: usize) -> MapSlice<'a> {
        let from = from.min(self.len);
        let address = self.address + (from * self.element.bytes()) as u64;
        MapSlice { address, len: len.min(self.len - from), ..self }
    }
}

impl MapSliceMut<'_> {
    /// The same elements, borrowed from this slice: for one of several writes.
    pub fn reborrow(&mut self) -> MapSliceMut<'_> {
        MapSliceMut { address: self.address, len: self.len, element: self.element, owner: PhantomData }
    }

    /// The same elements, to be read.
    pub fn as_slice(&self) -> MapSlice<'_> {
        MapSlice { address: self.address, len: self.len, element: self.element, owner: PhantomData }
    }

    /// The elements as an input and an output at once, for kernels in which each thread reads an element
    /// before it writes there, and no thread reads what another one writes.
    pub(crate) fn in_place(&mut self) -> [Arg<'_>; 2] {
        let output =
            MapSliceMut { address: self.address, len: self.len, element: self.element, owner: PhantomData };
        [Arg::from(In(self.as_slice())), Arg::from(Out(output))]
    }
}

/// Maps of any element type from maps or images of `f32` with `channels` channels. Further channels of `to`
/// become zero.
///
/// # Shapes
/// `from` (N, H, W, `channels`), `to` (N, H, W, C) with C ≥ `channels`
///
/// # Errors
/// If lengths disagree, or the device fails.
pub fn convert(
    on: &Context,
    from: MapSlice<'_>,
    channels: usize,
    (to, shape): (MapSliceMut<'_>, MapShape),
) -> Result<()> {
    const OPERATION: &str = "conversion of feature maps";
    let element = shape.check(OPERATION, &[to.as_slice()])?;
    let source = MapShape { channels, ..shape }.check(OPERATION, &[from])?;
    if source != Element::F32 || channels > shape.channels {
        let message = format!("{} of {source:?} in {channels} channels for {shape:?}", from.len());
        return Err(Error::Length { operation: OPERATION, message });
    }
    let (code, n) = (element.code(shape.channels), shape.len());
    let args = args![code, n, channels as u32, shape.channels as u32, In(from), Out(to)];
    // SAFETY: `check` has established that `to` holds the shape, and `from` the same pixels with `channels`
    // channels.
    unsafe { on.launch_over("pauc_pixels", n / element.pack(shape.channels), args) }
}

/// `y ← y + x`.
///
/// # Errors
/// If lengths disagree, or the device fails.
pub fn add(on: &Context, x: MapSlice<'_>, (y, shape): (MapSliceMut<'_>, MapShape)) -> Result<()> {
    let element = shape.check("sum of feature maps", &[x, y.as_slice()])?;
    let (code, n) = (element.code(shape.len()), shape.len());
    // SAFETY: `check` has established that both hold the shape's n elements.
    unsafe { on.launch_over("pauc_add_maps", n / element.pack(n), args![code, n, In(x), Out(y)]) }
}
