//! Feature maps in device memory: shape, memory, elements.

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
    /// Returns the shape of a matrix: one map of one pixel per row.
    pub fn matrix(rows: usize, cols: usize) -> Self {
        MapShape { batch: rows, height: 1, width: 1, channels: cols }
    }

    /// Returns the number of pixels of all images.
    pub fn pixels(&self) -> usize {
        self.batch * self.height * self.width
    }

    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        self.pixels() * self.channels
    }

    /// Returns whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Checks that all slices hold maps of this shape and of one element type, and returns that type. Kernels
    /// count elements in 32 bits.
    pub(crate) fn check(&self, operation: &'static str, slices: &[MapSlice<'_>]) -> Result<Element> {
        let n = self.len();
        let element = slices.first().map_or(Element::F32, |s| s.element);
        if n > 0 && n <= u32::MAX as usize && slices.iter().all(|s| s.len >= n && s.element == element) {
            return Ok(element);
        }
        let slices: Vec<String> = slices.iter().map(|s| format!("{} of {:?}", s.len, s.element)).collect();
        let message =
            format!("expected {self:?}, 1 to 2³² − 1 elements of one type, got {}", slices.join(", "));
        Err(Error::Length { operation, message })
    }
}

/// Owned memory of feature maps.
#[derive(Debug)]
pub struct FeatureMap {
    words: Buffer,
    len: usize,
    element: Element,
}

impl FeatureMap {
    /// Allocates uninitialized memory. The caller writes it before reading it.
    ///
    /// # Errors
    /// If the device is out of memory.
    pub fn uninit(on: &Context, len: usize, element: Element) -> Result<Self> {
        let words = Buffer::uninit(on, (len * element.bytes()).div_ceil(size_of::<f32>()))?;
        Ok(FeatureMap { words, len, element })
    }

    /// Returns the number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the element type.
    pub fn element(&self) -> Element {
        self.element
    }

    /// Copies the elements to host memory. Waits for the device.
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

    /// Borrows all elements.
    pub fn slice(&self) -> MapSlice<'_> {
        MapSlice { address: self.words.address(), len: self.len, element: self.element, owner: PhantomData }
    }

    /// Borrows all elements mutably.
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

/// The element type of borrowed slices, and their use as kernel arguments.
macro_rules! map_slice {
    ($($slice:ident: $side:ident),*) => { $(
        impl $slice<'_> {
            /// Returns the element type.
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
    /// Returns up to `len` elements starting at `from`; fewer if the slice ends before.
    pub(crate) fn part(self, from: usize, len: usize) -> MapSlice<'a> {
        let from = from.min(self.len);
        let address = self.address + (from * self.element.bytes()) as u64;
        MapSlice { address, len: len.min(self.len - from), ..self }
    }
}

impl MapSliceMut<'_> {
    /// Borrows the same elements again, for one of several writes.
    pub fn reborrow(&mut self) -> MapSliceMut<'_> {
        MapSliceMut { address: self.address, len: self.len, element: self.element, owner: PhantomData }
    }

    /// Borrows the same elements for reading.
    pub fn as_slice(&self) -> MapSlice<'_> {
        MapSlice { address: self.address, len: self.len, element: self.element, owner: PhantomData }
    }

    /// Returns the elements as an input and an output at once. Only for kernels in which each thread reads an
    /// element before writing it, and reads no element that another thread writes.
    pub(crate) fn in_place(&mut self) -> [Arg<'_>; 2] {
        let output =
            MapSliceMut { address: self.address, len: self.len, element: self.element, owner: PhantomData };
        [Arg::from(In(self.as_slice())), Arg::from(Out(output))]
    }
}

/// Converts maps or images of `f32` with `channels` channels to maps of any element type. Additional channels
/// of `to` are set to zero.
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
        let message = format!("{} of {source:?} with {channels} channels do not fit {shape:?}", from.len());
        return Err(Error::Length { operation: OPERATION, message });
    }
    let (code, n) = (element.code(shape.channels), shape.len());
    let args = args![code, n, channels as u32, shape.channels as u32, In(from), Out(to)];
    // SAFETY: `check` has established that `to` holds the shape, and that `from` holds the same pixels with
    // `channels` channels.
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
