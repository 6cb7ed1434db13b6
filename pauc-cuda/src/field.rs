//! Feature maps in the device's memory: their shape, and what their elements are.

use crate::context::Arg;
use crate::memory::ViewMut;
use crate::{Buffer, Context, Error, Result, View};
use std::marker::PhantomData;

/// What the elements of maps are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Element {
    /// Four bytes.
    #[default]
    F32,
    /// The upper two bytes of an `f32`, rounded.
    Bf16,
    /// Two bytes of which eleven bits are digits, one of them unwritten, and five say the size; at most 65504.
    F16,
}

impl Element {
    /// Bytes of one.
    pub fn bytes(self) -> usize {
        match self {
            Element::F32 => 4,
            Element::Bf16 | Element::F16 => 2,
        }
    }

    /// How many a thread takes at once of rows of so many.
    pub(crate) fn pack(self, channels: usize) -> usize {
        let most = 16 / self.bytes();
        if channels.is_multiple_of(most) { most } else { 1 }
    }

    /// What kernels call it, for rows of so many channels.
    pub(crate) fn code(self, channels: usize) -> u32 {
        let single = u32::from(self.pack(channels) == 1);
        match self {
            Element::F32 => single,
            Element::Bf16 => 2 + single,
            Element::F16 => 4 + single,
        }
    }
}

/// The number that the bits of an [`Element::F16`] are.
fn from_f16(bits: u16) -> f32 {
    let (sign, rest) = (u32::from(bits & 0x8000) << 16, u32::from(bits & 0x7fff));
    // The bits of its digits lie 13 further down than an f32's, and its exponent counts from 112 more.
    let size = match rest {
        ..0x7c00 => f32::from_bits(rest << 13) * 2f32.powi(112),
        0x7c00 => f32::INFINITY,
        _ => f32::NAN,
    };
    f32::from_bits(size.to_bits() | sign)
}

/// Memory of maps.
#[derive(Debug)]
pub struct Field {
    words: Buffer,
    len: usize,
    element: Element,
}

impl Field {
    /// So many elements of any content.
    ///
    /// # Errors
    /// If the device has not enough memory.
    pub fn any(on: &Context, len: usize, element: Element) -> Result<Self> {
        let words = Buffer::any(on, (len * element.bytes()).div_ceil(size_of::<f32>()))?;
        Ok(Field { words, len, element })
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A copy in host memory.
    ///
    /// # Errors
    /// If the device fails.
    pub fn to_host(&self) -> Result<Vec<f32>> {
        let words = self.words.to_host()?;
        let from = match self.element {
            Element::F32 => return Ok(words),
            Element::Bf16 => |bits: u16| f32::from_bits(u32::from(bits) << 16),
            Element::F16 => from_f16,
        };
        let halves = words.iter().map(|w| w.to_bits()).flat_map(|w| [w as u16, (w >> 16) as u16]);
        Ok(halves.map(from).take(self.len).collect())
    }

    /// All elements, borrowed.
    pub fn elements(&self) -> Elements<'_> {
        Elements { address: self.words.address(), len: self.len, element: self.element, owner: PhantomData }
    }

    /// All elements, borrowed to be written.
    pub fn elements_mut(&mut self) -> ElementsMut<'_> {
        let (address, len, element) = (self.words.address(), self.len, self.element);
        ElementsMut { address, len, element, owner: PhantomData }
    }
}

/// A borrowed run of elements.
#[derive(Clone, Copy, Debug)]
pub struct Elements<'a> {
    address: u64,
    len: usize,
    element: Element,
    owner: PhantomData<&'a Field>,
}

/// A run of elements, borrowed to be written.
#[derive(Debug)]
pub struct ElementsMut<'a> {
    address: u64,
    len: usize,
    element: Element,
    owner: PhantomData<&'a mut Field>,
}

impl<'a> From<View<'a>> for Elements<'a> {
    fn from(v: View<'a>) -> Self {
        Elements { address: v.address(), len: v.len(), element: Element::F32, owner: PhantomData }
    }
}

impl<'a> From<ViewMut<'a>> for ElementsMut<'a> {
    fn from(v: ViewMut<'a>) -> Self {
        ElementsMut { address: v.address(), len: v.len(), element: Element::F32, owner: PhantomData }
    }
}

impl From<Elements<'_>> for Arg {
    fn from(v: Elements<'_>) -> Self {
        Arg::Address(v.address)
    }
}

impl From<&ElementsMut<'_>> for Arg {
    fn from(v: &ElementsMut<'_>) -> Self {
        Arg::Address(v.address)
    }
}

impl<'a> Elements<'a> {
    /// Some elements from one on; as many of them as there are.
    pub(crate) fn part(self, from: usize, len: usize) -> Elements<'a> {
        let from = from.min(self.len);
        let address = self.address + (from * self.element.bytes()) as u64;
        Elements { address, len: len.min(self.len - from), ..self }
    }
}

impl Elements<'_> {
    /// The address on the device.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What they are.
    pub fn element(&self) -> Element {
        self.element
    }
}

impl ElementsMut<'_> {
    /// The address on the device.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The same once more, to be written after this has been.
    pub(crate) fn again(&self) -> ElementsMut<'_> {
        ElementsMut { address: self.address, len: self.len, element: self.element, owner: PhantomData }
    }

    /// To be read.
    pub fn read(&self) -> Elements<'_> {
        Elements { address: self.address, len: self.len, element: self.element, owner: PhantomData }
    }
}

/// The shape of maps whose channels come last; rows of a matrix are maps of one pixel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Maps {
    /// Images.
    pub batch: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// Channels.
    pub channels: usize,
}

impl Maps {
    /// Rows of a matrix.
    pub fn rows(rows: usize, channels: usize) -> Self {
        Maps { batch: rows, height: 1, width: 1, channels }
    }

    /// The number of pixels of all images.
    pub fn pixels(&self) -> usize {
        self.batch * self.height * self.width
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.pixels() * self.channels
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// That runs hold these maps and are of one kind, which is returned. Kernels count elements in 32 bits.
    pub(crate) fn check(&self, operation: &'static str, runs: &[Elements<'_>]) -> Result<Element> {
        let n = self.len();
        let element = runs.first().map_or(Element::F32, |r| r.element);
        if n > 0 && n <= u32::MAX as usize && runs.iter().all(|r| r.len >= n && r.element == element) {
            return Ok(element);
        }
        let runs: Vec<String> = runs.iter().map(|r| format!("{} of {:?}", r.len, r.element)).collect();
        let message = format!("{self:?} in {}: at most 2³² − 1 elements, and at least one", runs.join(", "));
        Err(Error::Length { operation, message })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_read_bit_by_bit() {
        let known = [
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x3555, 0.333_251_95),
            (0x7bff, 65504.0),
            (0x0400, 2f32.powi(-14)),
            (0x0001, 2f32.powi(-24)),
            (0xfc00, f32::NEG_INFINITY),
        ];
        for (bits, number) in known {
            assert_eq!(from_f16(bits), number, "{bits:x}");
        }
        assert!(from_f16(0x7e00).is_nan());
        assert_eq!(from_f16(0x8000).to_bits(), (-0f32).to_bits());
    }
}
