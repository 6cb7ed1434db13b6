//! NumPy's array files, `.npy`.
//!
//! A file consists of the magic `\x93NUMPY`, a version, the length of the header (2 bytes in version 1, 4 in
//! versions 2 and 3), the header, and the values. The header is a Python dictionary of type, order and shape,
//! padded with spaces. Source: <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>.

use crate::{Error, Result};
use std::borrow::Cow;
use std::ops::Range;
use std::path::Path;

const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// Values begin at a multiple of this many bytes, so that they can be memory-mapped.
const ALIGNMENT: usize = 64;
/// Bytes per character of text.
const TEXT_UNIT: usize = 4;

/// The type of an array's values: little-endian numbers of the given number of bytes, or text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    /// Floating-point numbers of 2, 4 or 8 bytes.
    Float(usize),
    /// Signed integers of 1, 2, 4 or 8 bytes.
    Signed(usize),
    /// Unsigned integers of 1, 2, 4 or 8 bytes.
    Unsigned(usize),
    /// Strings of up to this many characters, in UTF-32; shorter ones are padded with zeros.
    Text(usize),
}

impl Element {
    /// Parses NumPy's `descr`, such as `<f4`.
    fn parse(descr: &str) -> Option<Self> {
        let code = descr.trim_start_matches(['<', '>', '|', '=']);
        let kind = code.chars().next()?;
        let size = code.get(kind.len_utf8()..)?.parse().ok()?;
        let element = match (kind, size) {
            ('f', 2 | 4 | 8) => Element::Float(size),
            ('i', 1 | 2 | 4 | 8) => Element::Signed(size),
            ('u', 1 | 2 | 4 | 8) => Element::Unsigned(size),
            ('U', 1..) if size <= usize::MAX / TEXT_UNIT => Element::Text(size),
            _ => return None,
        };
        // For single bytes, the byte order does not matter.
        (element.size() == 1 || !descr.starts_with('>')).then_some(element)
    }

    /// Returns the number of bytes of a value.
    pub fn size(self) -> usize {
        match self {
            Element::Float(size) | Element::Signed(size) | Element::Unsigned(size) => size,
            Element::Text(characters) => characters * TEXT_UNIT,
        }
    }

    /// Returns the letter of the kind and the bytes of a number or the characters of a text, such as `f4`.
    pub fn code(self) -> String {
        match self {
            Element::Float(size) => format!("f{size}"),
            Element::Signed(size) => format!("i{size}"),
            Element::Unsigned(size) => format!("u{size}"),
            Element::Text(characters) => format!("U{characters}"),
        }
    }
}

/// The content of a file's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The type of the values.
    pub element: Element,
    /// The lengths of the axes; the last one varies fastest.
    pub shape: Vec<usize>,
    /// The byte range of the values in the file.
    pub data: Range<usize>,
}

impl Header {
    /// Reads the header from a file's `bytes`, and checks that the values are complete. `origin` names the
    /// file in errors; `remedy` says how to save an array of another type.
    ///
    /// # Errors
    /// [`Error::Damaged`] if the file has another format, is truncated or column-major, or its values are not
    /// little-endian numbers.
    pub fn read(bytes: &[u8], origin: &Path, remedy: &str) -> Result<Self> {
        let damaged = |message: String| Error::damaged(origin, message);
        let (text, start) = header_text(bytes, damaged)?;
        let field = |name: &str| field(&text, name);
        let (Some(descr), Some(order), Some(axes)) = (field("descr"), field("fortran_order"), field("shape"))
        else {
            let shown: String = text.trim().chars().take(120).collect();
            return Err(damaged(format!("has a header without type, order and shape: {shown}")));
        };
        let shape = shape(axes).ok_or_else(|| damaged(format!("has the invalid shape {axes}")))?;
        if order != "False" && shape.len() > 1 {
            let message = "is column-major (Fortran order); save numpy.ascontiguousarray of it";
            return Err(damaged(message.into()));
        }
        let descr = descr.trim_matches(['\'', '"']);
        let element = Element::parse(descr).ok_or_else(|| {
            damaged(format!("has values of type `{descr}`, expected little-endian numbers; {remedy}"))
        })?;
        let size = shape.iter().try_fold(element.size(), |n, axis| n.checked_mul(*axis));
        let size = size
            .ok_or_else(|| damaged(format!("has an impossible shape, larger than any memory: {shape:?}")))?;
        let following = bytes.len() - start;
        if following < size {
            return Err(damaged(format!(
                "is truncated: expected {size} bytes after the header, got {following}; copy or save it again"
            )));
        }
        Ok(Header { element, shape, data: start..start + size })
    }
}

/// Returns a file's header as text, and its end.
fn header_text(bytes: &[u8], damaged: impl Fn(String) -> Error) -> Result<(Cow<'_, str>, usize)> {
    let cut =
        || damaged(format!("is truncated within its header: {} bytes; copy or save it again", bytes.len()));
    if !bytes.starts_with(&MAGIC[..bytes.len().min(MAGIC.len())]) {
        return Err(damaged("is not a .npy file: it does not begin with \\x93NUMPY".into()));
    }
    let (start, length) = match bytes.get(MAGIC.len()).ok_or_else(cut)? {
        1 => (10, bytes.get(8..10).map(|b| usize::from(u16::from_le_bytes([b[0], b[1]])))),
        2 | 3 => (12, bytes.get(8..12).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize)),
        other => return Err(damaged(format!("has .npy version {other}; expected versions 1 to 3"))),
    };
    let end = length.and_then(|l| l.checked_add(start)).ok_or_else(cut)?;
    Ok((String::from_utf8_lossy(bytes.get(start..end).ok_or_else(cut)?), end))
}

/// Returns the text of a key's value in the header's dictionary.
fn field<'a>(header: &'a str, name: &str) -> Option<&'a str> {
    let value = header.split_once(&format!("'{name}':"))?.1.trim_start();
    let end = if value.starts_with('(') { value.find(')')? + 1 } else { value.find([',', '}'])? };
    Some(value[..end].trim())
}

/// Parses the lengths in a tuple such as `(2, 3)` or `(2,)`.
fn shape(tuple: &str) -> Option<Vec<usize>> {
    let axes = tuple.strip_prefix('(')?.strip_suffix(')')?.split(',').map(str::trim);
    axes.filter(|axis| !axis.is_empty()).map(|axis| axis.parse().ok()).collect()
}

/// Returns a file of version 1 with the values `data`: row-major, little-endian, as `numpy.save` writes it.
///
/// # Shapes
/// data: the bytes of as many values as `shape` has elements
///
/// # Panics
/// If the number of bytes in `data` does not match `shape`.
pub fn encode(element: Element, shape: &[usize], data: &[u8]) -> Vec<u8> {
    assert_eq!(data.len(), shape.iter().product::<usize>() * element.size(), "bytes of an array {shape:?}");
    let order = if element.size() == 1 { '|' } else { '<' };
    let axes: Vec<String> = shape.iter().map(usize::to_string).collect();
    // Python's tuples of one value end in a comma.
    let axes = if let [axis] = &axes[..] { format!("{axis},") } else { axes.join(", ") };
    let code = element.code();
    let mut header = format!("{{'descr': '{order}{code}', 'fortran_order': False, 'shape': ({axes}), }}");
    const PREFIX: usize = MAGIC.len() + 4;
    let length = (PREFIX + header.len() + 1).next_multiple_of(ALIGNMENT) - PREFIX;
    header.push_str(&" ".repeat(length - header.len() - 1));
    header.push('\n');
    let mut file = Vec::with_capacity(PREFIX + length + data.len());
    file.extend(MAGIC);
    file.extend([1, 0]);
    file.extend((length as u16).to_le_bytes());
    file.extend(header.bytes());
    file.extend(data);
    file
}

/// Returns a file of strings, one per row, as `numpy.save` writes an array of `str`.
///
/// # Shapes
/// texts N → an array of N
pub fn encode_texts(texts: &[String]) -> Vec<u8> {
    let characters = texts.iter().map(|text| text.chars().count()).max().unwrap_or(0).max(1);
    let mut data = Vec::with_capacity(texts.len() * characters * TEXT_UNIT);
    for (row, text) in texts.iter().enumerate() {
        data.extend(text.chars().flat_map(|c| u32::from(c).to_le_bytes()));
        data.resize((row + 1) * characters * TEXT_UNIT, 0);
    }
    encode(Element::Text(characters), &[texts.len()], &data)
}

/// Returns the strings of a file with one string per row.
///
/// # Errors
/// As [`Header::read`], or if the file holds something else, or a character is invalid.
pub fn texts(bytes: &[u8], origin: &Path) -> Result<Vec<String>> {
    let header = Header::read(bytes, origin, "save names.astype(str)")?;
    let (Element::Text(_), [rows]) = (header.element, &header.shape[..]) else {
        let (code, shape) = (header.element.code(), &header.shape);
        let message = format!("holds {code} of shape {shape:?}; expected one string per row");
        return Err(Error::damaged(origin, message));
    };
    let width = header.element.size();
    (0..*rows)
        .map(|row| {
            let units = bytes[header.data.start + row * width..][..width].as_chunks().0.iter();
            let units = units.map(|unit| u32::from_le_bytes(*unit)).take_while(|unit| *unit != 0);
            units.map(char::from_u32).collect::<Option<String>>().ok_or_else(|| {
                Error::damaged(origin, format!("row {row} is not valid text; save the names again"))
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::npy::file;

    fn read(bytes: &[u8]) -> Result<Header> {
        Header::read(bytes, Path::new("a.npy"), "save it as float32")
    }

    /// `numpy.save` of `numpy.array([[1, -2], [3, 4]], dtype='<i2')`, NumPy 2.
    fn of_numpy() -> Vec<u8> {
        let header = "{'descr': '<i2', 'fortran_order': False, 'shape': (2, 2), }";
        let mut bytes = b"\x93NUMPY\x01\x00v\x00".to_vec();
        bytes.extend(format!("{header:<117}\n").bytes());
        bytes.extend(b"\x01\x00\xfe\xff\x03\x00\x04\x00");
        bytes
    }

    #[test]
    fn files_of_numpy_are_read_and_written_alike() {
        let bytes = of_numpy();
        let header = read(&bytes).unwrap();
        let data = 128..136;
        assert_eq!(header, Header { element: Element::Signed(2), shape: vec![2, 2], data: data.clone() });
        assert_eq!(encode(Element::Signed(2), &[2, 2], &bytes[data]), bytes);
        for (element, shape) in
            [(Element::Float(4), vec![3]), (Element::Unsigned(1), vec![2, 0, 5]), (Element::Float(8), vec![])]
        {
            let size = shape.iter().product::<usize>() * element.size();
            let bytes = encode(element, &shape, &vec![7; size]);
            let header = read(&bytes).unwrap();
            assert_eq!((header.element, &header.shape), (element, &shape));
            assert_eq!((header.data.start % ALIGNMENT, &bytes[header.data]), (0, &vec![7; size][..]));
        }
    }

    /// The header and the values of `numpy.save` of `numpy.array(["a", "übe"])`, NumPy 2.
    #[test]
    fn texts_are_written_as_numpy_writes_them() {
        let names = ["a".to_string(), "übe".into()];
        let header = "{'descr': '<U3', 'fortran_order': False, 'shape': (2,), }";
        let mut want = b"\x93NUMPY\x01\x00v\x00".to_vec();
        want.extend(format!("{header:<117}\n").bytes());
        for unit in [0x61u32, 0, 0, 0xfc, 0x62, 0x65] {
            want.extend(unit.to_le_bytes());
        }
        assert_eq!(encode_texts(&names), want);
        assert_eq!(texts(&want, Path::new("n.npy")).unwrap(), names);
        assert_eq!(texts(&encode_texts(&[]), Path::new("n.npy")).unwrap(), Vec::<String>::new());
        let error = |bytes: &[u8]| texts(bytes, Path::new("n.npy")).unwrap_err().to_string();
        want[128..132].copy_from_slice(&0xd800u32.to_le_bytes());
        assert!(error(&want).contains("row 0 is not valid text"), "{}", error(&want));
        assert!(error(&of_numpy()).contains("holds i2 of shape [2, 2]"), "{}", error(&of_numpy()));
        let swapped = file(">U1", false, "(1,)", &[0; 4]);
        assert!(error(&swapped).contains("type `>U1`"), "{}", error(&swapped));
        let vast = file("<U4611686018427387904", false, "(2,)", &[]);
        assert!(error(&vast).contains("type `<U4611686018427387904`"), "{}", error(&vast));
    }

    #[test]
    fn versions_with_long_headers_are_read() {
        let mut bytes = of_numpy();
        bytes[6] = 2;
        bytes.splice(8..10, 118u32.to_le_bytes());
        assert_eq!(read(&bytes).unwrap().data, 130..138);
    }

    #[test]
    fn other_files_are_refused_with_the_reason() {
        let error = |bytes: &[u8]| read(bytes).unwrap_err().to_string();
        let good = file("<f4", false, "(3, 2)", &[0; 24]);
        let mut future = good.clone();
        future[6] = 9;
        for (bytes, reason) in [
            (&good[..good.len() - 5], "is truncated: expected 24 bytes after the header, got 19; copy"),
            (&good[..40], "is truncated within its header: 40 bytes"),
            (&good[..4], "is truncated within its header"),
            (b"\x93NUMPY\x01\x00\xff\xff{'descr'", "is truncated within its header"),
            (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{'descr'", "is truncated within its header"),
            (b"PK", "does not begin with"),
            (&future, "version 9; expected versions 1 to 3"),
            (
                &file(">f4", false, "(1, 1)", &[0; 4]),
                "type `>f4`, expected little-endian numbers; save it as float32",
            ),
            (&file("|O", false, "(1, 1)", &[0; 8]), "type `|O`"),
            (&file("|b1", false, "(1, 1)", &[0; 8]), "type `|b1`"),
            (&file("<é4", false, "(1, 1)", &[0; 8]), "type `<é4`"),
            (&file("<f4", true, "(3, 2)", &[0; 24]), "column-major (Fortran order)"),
            (&file("<f4", false, "(3, x)", &[0; 24]), "has the invalid shape (3, x)"),
            (&file("<f4", false, "(99999999999, 99999999999)", &[]), "an impossible shape"),
            (&file("<f4", false, "(99999999999", &[]), "without type, order and shape"),
        ] {
            let text = error(bytes);
            assert!(text.starts_with("a.npy: ") && text.contains(reason), "{reason}: {text}");
        }
        // With one axis, row-major and column-major order are the same.
        assert!(read(&file("<f4", true, "(6,)", &[0; 24])).is_ok());
        assert_eq!(read(&file(">u1", false, "(2,)", &[0; 2])).unwrap().element, Element::Unsigned(1));
    }
}
