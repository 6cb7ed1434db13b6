//! Weight files: named tensors with metadata in the safetensors format, which PyTorch reads.
//!
//! Equal content gives equal bytes: tensors are sorted by element size and name, metadata by key.

use crate::pretrained;
use pauc_traits::{Compute, Error, Param, Result, atomic};
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// The values of a tensor, row-major.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// 32-bit floating point.
    F32(Vec<f32>),
    /// 64-bit signed integers.
    I64(Vec<i64>),
    /// 64-bit unsigned integers.
    U64(Vec<u64>),
    /// Bytes.
    U8(Vec<u8>),
}

impl Values {
    fn len(&self) -> usize {
        match self {
            Values::F32(v) => v.len(),
            Values::I64(v) => v.len(),
            Values::U64(v) => v.len(),
            Values::U8(v) => v.len(),
        }
    }

    /// Returns the name of the element type in the format, and its size in bytes.
    fn dtype(&self) -> (&'static str, usize) {
        match self {
            Values::F32(_) => ("F32", 4),
            Values::I64(_) => ("I64", 8),
            Values::U64(_) => ("U64", 8),
            Values::U8(_) => ("U8", 1),
        }
    }

    fn write(&self, to: &mut impl Write) -> io::Result<()> {
        match self {
            Values::F32(v) => v.iter().try_for_each(|v| to.write_all(&v.to_le_bytes())),
            Values::I64(v) => v.iter().try_for_each(|v| to.write_all(&v.to_le_bytes())),
            Values::U64(v) => v.iter().try_for_each(|v| to.write_all(&v.to_le_bytes())),
            Values::U8(v) => to.write_all(v),
        }
    }

    fn read(dtype: Dtype, bytes: &[u8]) -> Option<Self> {
        fn words<T, const N: usize>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
            bytes.as_chunks().0.iter().map(|word| read(*word)).collect()
        }
        Some(match dtype {
            Dtype::F32 => Values::F32(words(bytes, f32::from_le_bytes)),
            Dtype::F16 => Values::F32(words(bytes, |word| f16(u16::from_le_bytes(word)))),
            Dtype::BF16 => {
                Values::F32(words(bytes, |word| f32::from_bits(u32::from(u16::from_le_bytes(word)) << 16)))
            }
            Dtype::I64 => Values::I64(words(bytes, i64::from_le_bytes)),
            Dtype::U64 => Values::U64(words(bytes, u64::from_le_bytes)),
            Dtype::U8 => Values::U8(bytes.to_vec()),
            _ => return None,
        })
    }
}

/// Returns the value of an IEEE 754 number of 16 bits: a sign, 5 bits of exponent and 10 of significand.
fn f16(bits: u16) -> f32 {
    let [sign, exponent, significand] = [(bits >> 15, 31), ((bits >> 10) & 0x1f, 23), (bits & 0x3ff, 13)]
        .map(|(part, at)| u32::from(part) << at);
    let magnitude = match (bits >> 10) & 0x1f {
        // Subnormal: a multiple of 2⁻²⁴.
        0 => (f32::from(bits & 0x3ff) * 2.0f32.powi(-24)).to_bits(),
        31 => (0xff << 23) | significand,
        // The bias is 15 instead of 127.
        _ => (exponent + (112 << 23)) | significand,
    };
    f32::from_bits(sign | magnitude)
}

/// A tensor of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct FileTensor {
    /// The shape.
    pub shape: Vec<usize>,
    /// One value per element of the shape.
    pub values: Values,
}

/// An element that is NaN or infinite.
#[derive(Clone, Debug, PartialEq)]
pub struct NonFiniteElement {
    /// The name of its tensor.
    pub tensor: String,
    /// Its index along each axis.
    pub index: Vec<usize>,
    /// Its value.
    pub value: f32,
}

impl NonFiniteElement {
    fn new(name: &str, shape: &[usize], flat: usize, value: f32) -> Self {
        let mut index = vec![0; shape.len()];
        let mut rest = flat;
        for (i, len) in index.iter_mut().zip(shape).rev() {
            (*i, rest) = (rest % len, rest / len);
        }
        NonFiniteElement { tensor: name.into(), index, value }
    }
}

impl std::fmt::Display for NonFiniteElement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "tensor `{}` is {} at index {:?}", self.tensor, self.value, self.index)
    }
}

/// Named tensors and metadata, in memory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TensorFile {
    /// Free text by key.
    pub metadata: BTreeMap<String, String>,
    tensors: BTreeMap<String, FileTensor>,
    /// The path it was read from, for error messages.
    path: PathBuf,
}

/// Reads the metadata of a safetensors file; `None` if its content is not safetensors.
fn read_metadata(path: &Path) -> io::Result<Option<BTreeMap<String, String>>> {
    #[derive(serde::Deserialize)]
    struct Header {
        #[serde(rename = "__metadata__", default)]
        metadata: BTreeMap<String, String>,
    }
    let mut file = fs::File::open(path)?;
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if length > file.metadata()?.len() {
        return Ok(None);
    }
    let mut header = Vec::new();
    file.take(length).read_to_end(&mut header)?;
    Ok(serde_json::from_slice(&header).ok().map(|header: Header| header.metadata))
}

impl TensorFile {
    /// Creates a file without tensors and metadata.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a tensor.
    ///
    /// # Errors
    /// If the name exists already, or the number of values does not match the shape.
    pub fn insert(&mut self, name: impl Into<String>, shape: &[usize], values: Values) -> Result<()> {
        let name = name.into();
        if values.len() != shape.iter().product::<usize>() {
            return Err(Error::shape(name, format!("{} values for shape {shape:?}", values.len())));
        }
        if self.tensors.contains_key(&name) {
            return Err(Error::shape(name, "is already in the file: tensor names must be unique"));
        }
        self.tensors.insert(name, FileTensor { shape: shape.to_vec(), values });
        Ok(())
    }

    /// Replaces a tensor.
    ///
    /// # Errors
    /// If the number of values does not match the shape.
    pub fn replace(&mut self, name: &str, shape: &[usize], values: Values) -> Result<()> {
        self.tensors.remove(name);
        self.insert(name, shape, values)
    }

    /// Returns the path that it was read from; empty if it was made in memory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds parameters or statistics, with a prefix before their names.
    ///
    /// # Errors
    /// As [`TensorFile::insert`], or if the device fails.
    pub fn insert_params<D: Compute>(&mut self, device: &D, prefix: &str, params: &[Param<D>]) -> Result<()> {
        params.iter().try_for_each(|p| {
            let values = Values::F32(device.download(&p.value())?);
            self.insert(format!("{prefix}{}", p.name), &p.shape, values)
        })
    }

    /// Returns the names of the tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Keeps the tensors whose names are `wanted`.
    pub fn retain(&mut self, wanted: impl Fn(&str) -> bool) {
        self.tensors.retain(|name, _| wanted(name));
    }

    /// Returns the first NaN or infinite element of the tensors of `f32` whose names are `wanted`.
    pub fn first_non_finite(&self, wanted: impl Fn(&str) -> bool) -> Option<NonFiniteElement> {
        self.tensors.iter().filter(|(name, _)| wanted(name)).find_map(|(name, tensor)| {
            let Values::F32(values) = &tensor.values else { return None };
            let flat = values.iter().position(|v| !v.is_finite())?;
            Some(NonFiniteElement::new(name, &tensor.shape, flat, values[flat]))
        })
    }

    /// Returns a tensor by name, if it exists.
    pub fn get(&self, name: &str) -> Option<&FileTensor> {
        self.tensors.get(name)
    }

    /// Returns the values of a tensor of `f32`.
    ///
    /// # Errors
    /// If there is no tensor of that name, or its elements have another type.
    pub fn f32(&self, name: &str) -> Result<&[f32]> {
        match &self.require(name)?.values {
            Values::F32(v) => Ok(v),
            other => Err(self.other_dtype(name, other, "F32")),
        }
    }

    /// Returns the values of a tensor of `i64`.
    ///
    /// # Errors
    /// As [`TensorFile::f32`].
    pub fn i64(&self, name: &str) -> Result<&[i64]> {
        match &self.require(name)?.values {
            Values::I64(v) => Ok(v),
            other => Err(self.other_dtype(name, other, "I64")),
        }
    }

    /// Returns the values of a tensor of `u64`.
    ///
    /// # Errors
    /// As [`TensorFile::f32`].
    pub fn u64(&self, name: &str) -> Result<&[u64]> {
        match &self.require(name)?.values {
            Values::U64(v) => Ok(v),
            other => Err(self.other_dtype(name, other, "U64")),
        }
    }

    /// Returns the values of a tensor of bytes.
    ///
    /// # Errors
    /// As [`TensorFile::f32`].
    pub fn u8(&self, name: &str) -> Result<&[u8]> {
        match &self.require(name)?.values {
            Values::U8(v) => Ok(v),
            other => Err(self.other_dtype(name, other, "U8")),
        }
    }

    fn require(&self, name: &str) -> Result<&FileTensor> {
        self.get(name).ok_or_else(|| {
            let near = pauc_traits::registry::did_you_mean(name, self.names());
            let near = near.map(|n| format!("; it has `{n}`")).unwrap_or_default();
            Error::damaged(&self.path, format!("has no tensor `{name}`{near}"))
        })
    }

    fn other_dtype(&self, name: &str, values: &Values, wanted: &str) -> Error {
        let message = format!("tensor `{name}` holds {}; expected {wanted}", values.dtype().0);
        Error::damaged(&self.path, message)
    }

    /// Writes the file atomically, see [`atomic::write_with`]: `path` has either the old content or the new.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder does not exist or cannot be written. `path` is then unchanged.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        atomic::write_with(path.as_ref(), |file| self.write(file))
    }

    /// Returns the content of a file of these tensors.
    ///
    /// # Errors
    /// If a name or a value of the metadata cannot be written.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.write(&mut bytes).map_err(|e| Error::Other(e.into()))?;
        Ok(bytes)
    }

    fn write(&self, file: &mut impl Write) -> io::Result<()> {
        let mut ordered: Vec<(&String, &FileTensor)> = self.tensors.iter().collect();
        // A stable sort: by name within an element size, larger elements first, so that all of them are
        // aligned.
        ordered.sort_by_key(|(_, t)| std::cmp::Reverse(t.values.dtype().1));
        let header = self.header(&ordered)?;
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        ordered.iter().try_for_each(|(_, t)| t.values.write(file))
    }

    fn header(&self, ordered: &[(&String, &FileTensor)]) -> io::Result<String> {
        let mut entries = Vec::new();
        if !self.metadata.is_empty() {
            entries.push(format!("\"__metadata__\":{}", serde_json::to_string(&self.metadata)?));
        }
        let mut offset = 0;
        for (name, tensor) in ordered {
            let (dtype, size) = tensor.values.dtype();
            let (name, end) = (serde_json::to_string(name)?, offset + size * tensor.values.len());
            let shape = serde_json::to_string(&tensor.shape)?;
            entries.push(format!(
                "{name}:{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":[{offset},{end}]}}"
            ));
            offset = end;
        }
        let mut header = format!("{{{}}}", entries.join(","));
        header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
        Ok(header)
    }

    /// Reads only the metadata of a file, without its tensors; `None` if the file is not readable as
    /// safetensors.
    pub fn metadata_of(path: impl AsRef<Path>) -> Option<BTreeMap<String, String>> {
        Self::read_metadata(path).ok().flatten()
    }

    /// As [`TensorFile::metadata_of`]; `None` only if there is no file or its content is not safetensors.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read.
    pub fn read_metadata(path: impl AsRef<Path>) -> Result<Option<BTreeMap<String, String>>> {
        let path = path.as_ref();
        match read_metadata(path) {
            Ok(metadata) => Ok(metadata),
            Err(e) if [io::ErrorKind::NotFound, io::ErrorKind::UnexpectedEof].contains(&e.kind()) => Ok(None),
            Err(e) => Err(Error::io(path, e)),
        }
    }

    /// Reads a file. Tensors of F16 and BF16 become F32, which has all of their values.
    ///
    /// # Errors
    /// [`Error::NotFound`] if there is no file. [`Error::Damaged`] if it is truncated, not a safetensors
    /// file, or has a tensor of an element type other than F32, F16, BF16, I64, U64 and U8.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let bytes = fs::read(path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Error::NotFound {
                path: path.into(),
                remedy: "give the path of a safetensors file, such as a run's checkpoints/last.safetensors"
                    .into(),
            },
            _ => Error::io(path, e),
        })?;
        if pretrained::is_pickle(path, &bytes) {
            let remedy = "save it in Python: safetensors.torch.save_file(torch.load(FILE, weights_only=True), \
                \"weights.safetensors\")";
            return Err(Error::damaged(
                path,
                format!("is a pickle of PyTorch, not a safetensors file; {remedy}"),
            ));
        }
        Self::of_bytes(path, &bytes)
    }

    /// Reads the content of a file, whose path is for messages.
    ///
    /// # Errors
    /// [`Error::Damaged`] as [`TensorFile::load`].
    pub fn of_bytes(path: &Path, bytes: &[u8]) -> Result<Self> {
        let damaged = |e: &dyn std::fmt::Display| {
            let message =
                format!("truncated or corrupt safetensors file ({e}, {} bytes); copy it again", bytes.len());
            Error::damaged(path, message)
        };
        let (_, header) = SafeTensors::read_metadata(bytes).map_err(|e| damaged(&e))?;
        let all = SafeTensors::deserialize(bytes).map_err(|e| damaged(&e))?;
        let metadata = header.metadata().clone().unwrap_or_default().into_iter().collect();
        let mut file = TensorFile { metadata, tensors: BTreeMap::new(), path: path.into() };
        for (name, tensor) in all.iter() {
            let values = Values::read(tensor.dtype(), tensor.data()).ok_or_else(|| {
                let message = format!(
                    "tensor `{name}` holds {:?}: convert it to F32 (in PyTorch: `tensor.float()`), I64, U64 or U8",
                    tensor.dtype()
                );
                Error::damaged(path, message)
            })?;
            file.tensors.insert(name.into(), FileTensor { shape: tensor.shape().to_vec(), values });
        }
        Ok(file)
    }
}

/// Overwrites parameters and statistics with the tensors named `prefix` + name. On an error, none is
/// overwritten.
///
/// PyTorch's `num_batches_tracked` counters are ignored, because nothing here reads them.
///
/// # Errors
/// [`Error::Damaged`] with the names that are missing, unexpected under the prefix, or of another shape or
/// element type.
pub fn load_into<D: Compute>(
    device: &D,
    params: &[Param<D>],
    statistics: &[Param<D>],
    file: &TensorFile,
    prefix: &str,
) -> Result<()> {
    let wanted: BTreeMap<String, &Param<D>> =
        params.iter().chain(statistics).map(|p| (format!("{prefix}{}", p.name), p)).collect();
    let (mut missing, mut mismatched) = (Vec::new(), Vec::new());
    for (name, param) in &wanted {
        match file.get(name) {
            None => missing.push(name.clone()),
            Some(FileTensor { shape, values: Values::F32(_) }) if *shape == param.shape => {}
            Some(other) => {
                let dtype = other.values.dtype().0;
                mismatched
                    .push(format!("{name} (has {dtype} {:?}, needs F32 {:?})", other.shape, param.shape));
            }
        }
    }
    let unexpected = file.names().filter(|n| n.starts_with(prefix) && !wanted.contains_key(*n));
    let unexpected: Vec<_> =
        unexpected.filter(|n| !n.ends_with("num_batches_tracked")).map(str::to_string).collect();
    let lists = [("missing", missing), ("unexpected", unexpected), ("of another shape or type", mismatched)];
    let found: Vec<String> = lists
        .iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(what, names)| format!("{} {what}: {}", names.len(), listed(names)))
        .collect();
    if !found.is_empty() {
        let message = format!("the weights do not fit the network: {}", found.join("; "));
        return Err(Error::damaged(&file.path, message));
    }
    wanted.iter().try_for_each(|(name, param)| device.overwrite(&mut param.value_mut(), file.f32(name)?))
}

/// Returns the first few names, and the number of the rest.
fn listed(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let more = names.len().saturating_sub(SHOWN);
    let first = names[..names.len() - more].join(", ");
    if more == 0 { first } else { format!("{first} and {more} more") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_sixteen_bits_have_their_values() {
        // Half precision by IEEE 754: 1, −2, the largest, the smallest normal and subnormal numbers, 1/3 rounded.
        let values = [0x3c00, 0xc000, 0x7bff, 0x0400, 0x0001, 0x3555, 0x8000, 0x7c00].map(f16);
        let want = [1.0, -2.0, 65504.0, 2f32.powi(-14), 2f32.powi(-24), 0.333_251_95, 0.0, f32::INFINITY];
        assert_eq!(values, want);
        assert!(f16(0x7e00).is_nan() && f16(0x8000).is_sign_negative());
        // bfloat16 is the upper half of an f32.
        let read = |dtype, bits: u16| Values::read(dtype, &bits.to_le_bytes());
        assert_eq!(read(Dtype::BF16, 0x3f80), Some(Values::F32(vec![1.0])));
        assert_eq!(read(Dtype::BF16, 0xc049), Some(Values::F32(vec![-3.140_625])));
        assert_eq!(read(Dtype::F16, 0x3c00), Some(Values::F32(vec![1.0])));
        assert_eq!(read(Dtype::F64, 0), None);
    }
}
