//! Reads features and labels from safetensors, NumPy `.npy` and CSV files, and from Parquet with the cargo
//! feature `parquet`, which is on by default.
//!
//! Row-major `f32` matrices in safetensors and `.npy` files are memory-mapped, so a file may be larger than
//! memory.

use crate::csv_file;
use crate::sample_columns::SampleColumns;
use pauc_kernels::mmap::Mapped;
use pauc_traits::npy::Header;
use pauc_traits::probe::RowsView;
use pauc_traits::{Error, Result};
use safetensors::tensor::{Dtype, SafeTensors};
use std::ops::Range;
use std::path::Path;

/// Names under which a file may hold features, in the order of the search.
pub(crate) const NAMES: [&str; 3] = ["embeddings", "features", "view0"];
/// The supported kinds of files, for error messages.
const KINDS: &str = "give a .safetensors, .npy, .csv or .parquet file";

/// A matrix of features in a file.
#[derive(Debug)]
pub struct Matrix {
    values: Values,
    cols: usize,
}

#[derive(Debug)]
enum Values {
    Mapped { file: Mapped, offset: usize, count: usize },
    Read(Vec<f32>),
}

impl Matrix {
    /// Opens a matrix; the file's extension decides its kind. `tensor` names a tensor of a safetensors file.
    /// Without it, the file must hold a single matrix of floats, or one called `embeddings`, `features` or
    /// `view0`. In a Parquet file, every column of floats is a dimension, or one column holds a list of
    /// floats per row; there `tensor` names a column.
    ///
    /// # Errors
    /// If the file is missing, of an unknown kind, empty, truncated, or not a matrix of `f32` or `f64`
    /// (row-major).
    pub fn open(path: &Path, tensor: Option<&str>) -> Result<Matrix> {
        let kind = kind(path)?;
        if tensor.is_some() && !matches!(kind, Kind::Safetensors | Kind::Parquet) {
            return Err(Error::config(
                "--tensor is for safetensors and Parquet files; other files hold one array: leave it out",
            ));
        }
        if kind == Kind::Parquet {
            let (values, cols) = parquet(path, tensor)?;
            return Ok(Matrix { values: Values::Read(values), cols });
        }
        if kind == Kind::Csv {
            let (values, cols) = csv_file::matrix(path, &text(path)?)?;
            return Ok(Matrix { values: Values::Read(values), cols });
        }
        let file = map(path)?;
        let array = match kind {
            Kind::Npy => npy(path, file.bytes(), remedy(kind))?,
            _ => of_safetensors(path, file.bytes(), tensor)?,
        };
        let [rows, cols] = array.shape[..] else {
            let why = format!(
                "{} has shape {:?}; expected a matrix of samples × dimensions",
                array.name, array.shape
            );
            return Err(Error::damaged(path, why));
        };
        if rows == 0 || cols == 0 {
            return Err(Error::damaged(path, format!("{} is empty: its shape is {rows}×{cols}", array.name)));
        }
        let values = match array.dtype.as_str() {
            "f4" => match file.f32s(array.offset, rows * cols) {
                Some(_) => Values::Mapped { offset: array.offset, count: rows * cols, file },
                None => Values::Read(array.chunks(file.bytes(), f32::from_le_bytes)),
            },
            "f8" => Values::Read(array.chunks(file.bytes(), |b| f64::from_le_bytes(b) as f32)),
            other => {
                let why = format!("{} holds {other}; expected 32-bit floats: {}", array.name, remedy(kind));
                return Err(Error::damaged(path, why));
            }
        };
        Ok(Matrix { values, cols })
    }

    /// Returns the rows.
    pub fn rows(&self) -> RowsView<'_> {
        match &self.values {
            Values::Mapped { file, offset, count } => {
                // The constructor has checked that the values are there.
                RowsView::new(file.f32s(*offset, *count).unwrap_or(&[]), self.cols)
            }
            Values::Read(values) => RowsView::new(values, self.cols),
        }
    }

    /// Keeps only the rows in this range.
    ///
    /// # Panics
    /// If the range exceeds the rows.
    pub fn keep(&mut self, rows: Range<usize>) {
        let kept = rows.start * self.cols..rows.end * self.cols;
        match &mut self.values {
            Values::Mapped { offset, count, .. } => {
                assert!(kept.start <= kept.end && kept.end <= *count, "{rows:?} of {count} values");
                (*offset, *count) = (*offset + kept.start * size_of::<f32>(), kept.len());
            }
            Values::Read(values) => *values = values[kept].to_vec(),
        }
    }

    /// Returns whether the values are memory-mapped.
    pub fn is_mapped(&self) -> bool {
        matches!(self.values, Values::Mapped { .. })
    }
}

/// Reads class labels, one for each of `n` samples: integers ≥ 0 in a `.npy` file, one per line in a `.csv`
/// file, or the tensor `labels` of a safetensors file.
///
/// # Errors
/// If the file cannot be read as labels, or their number is not `n`.
pub fn labels(path: &Path, n: usize) -> Result<Vec<u32>> {
    let wrong = |why: String| Error::damaged(path, why);
    let values = match kind(path)? {
        Kind::Csv => csv_file::labels(path, &text(path)?)?,
        Kind::Npy => integers(path, None)?,
        Kind::Safetensors => integers(path, Some("labels"))?,
        Kind::Parquet => {
            let column = SampleColumns::read(path, n)?.labels;
            column.ok_or_else(|| wrong("has no column `labels` of 64-bit integers".into()))?
        }
    };
    if values.len() != n {
        return Err(wrong(format!("{} labels for {n} samples; expected one per sample", values.len())));
    }
    let number = |(i, v): (usize, i64)| {
        u32::try_from(v).map_err(|_| wrong(format!("label {i} is {v}; expected an integer ≥ 0")))
    };
    values.into_iter().enumerate().map(number).collect()
}

/// Reads integers, one per sample, from a `.npy` file, or from the tensor `tensor` of a safetensors file.
pub(crate) fn integers(path: &Path, tensor: Option<&str>) -> Result<Vec<i64>> {
    let wrong = |why: String| Error::damaged(path, why);
    let file = map(path)?;
    let array = match tensor {
        None => npy(path, file.bytes(), "numpy.save(path, x.astype('int64'))")?,
        Some(_) => of_safetensors(path, file.bytes(), tensor)?,
    };
    if array.shape.len() != 1 {
        let message = format!("{} has shape {:?}; expected one value per sample", array.name, array.shape);
        return Err(wrong(message));
    }
    let bytes = file.bytes();
    Ok(match array.dtype.as_str() {
        "i8" => array.chunks(bytes, i64::from_le_bytes),
        "u8" => array.chunks(bytes, |b| i64::try_from(u64::from_le_bytes(b)).unwrap_or(-1)),
        "i4" => array.chunks(bytes, |b| i32::from_le_bytes(b).into()),
        "u4" => array.chunks(bytes, |b| u32::from_le_bytes(b).into()),
        "i2" => array.chunks(bytes, |b| i16::from_le_bytes(b).into()),
        "u2" => array.chunks(bytes, |b| u16::from_le_bytes(b).into()),
        "i1" => array.chunks(bytes, |b| i8::from_le_bytes(b).into()),
        "u1" => array.chunks(bytes, |b| u8::from_le_bytes(b).into()),
        other => return Err(wrong(format!("{} holds {other}; expected integers", array.name))),
    })
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    Safetensors,
    Npy,
    Csv,
    Parquet,
}

pub(crate) fn kind(path: &Path) -> Result<Kind> {
    let ending = path.extension().map(|e| e.to_string_lossy().to_lowercase());
    match ending.as_deref() {
        Some("safetensors") => Ok(Kind::Safetensors),
        Some("npy") => Ok(Kind::Npy),
        Some("csv" | "tsv") => Ok(Kind::Csv),
        Some("parquet") => Ok(Kind::Parquet),
        _ => Err(Error::config(format!("{}: unknown kind of file: {KINDS}", path.display()))),
    }
}

fn remedy(kind: Kind) -> &'static str {
    match kind {
        Kind::Npy => "numpy.save(path, x.astype('float32'))",
        _ => "save the tensor as float32",
    }
}

fn missing(path: &Path, e: std::io::Error) -> Error {
    match e.kind() {
        std::io::ErrorKind::NotFound => Error::NotFound { path: path.into(), remedy: KINDS.into() },
        _ => Error::io(path, e),
    }
}

#[cfg(feature = "parquet")]
fn parquet(path: &Path, column: Option<&str>) -> Result<(Vec<f32>, usize)> {
    crate::parquet::read(path, std::fs::File::open(path).map_err(|e| missing(path, e))?, column)
}

#[cfg(not(feature = "parquet"))]
fn parquet(path: &Path, _: Option<&str>) -> Result<(Vec<f32>, usize)> {
    Err(Error::config(format!(
        "{}: built without the feature `parquet`: build with it, or save the features as .npy",
        path.display()
    )))
}

pub(crate) fn text(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|e| missing(path, e))
}

pub(crate) fn map(path: &Path) -> Result<Mapped> {
    let file = Mapped::open(path).map_err(|e| missing(path, e))?;
    if file.bytes().is_empty() {
        return Err(Error::damaged(path, "the file is empty"));
    }
    Ok(file)
}

/// The position of an array in its file. The type is a letter (i, u, f) and the bytes per value, as in NumPy.
struct Array {
    name: String,
    dtype: String,
    shape: Vec<usize>,
    offset: usize,
}

impl Array {
    fn count(&self) -> Option<usize> {
        self.shape.iter().try_fold(1usize, |n, s| n.checked_mul(*s))
    }

    /// Converts the values. The array must be within `bytes`.
    fn chunks<const N: usize, T>(&self, bytes: &[u8], value: impl Fn([u8; N]) -> T) -> Vec<T> {
        let count = self.count().unwrap_or(0);
        bytes[self.offset..].as_chunks::<N>().0.iter().take(count).map(|b| value(*b)).collect()
    }
}

/// Finds the array of a `.npy` file. `remedy` is the advice in the error about an unsupported type.
fn npy(path: &Path, bytes: &[u8], remedy: &str) -> Result<Array> {
    let Header { element, shape, data } = Header::read(bytes, path, remedy)?;
    Ok(Array { name: "the array".into(), dtype: element.code(), shape, offset: data.start })
}

fn of_safetensors(path: &Path, bytes: &[u8], tensor: Option<&str>) -> Result<Array> {
    let wrong = |why: String| Error::damaged(path, why);
    let file = SafeTensors::deserialize(bytes)
        .map_err(|e| wrong(format!("truncated or corrupt safetensors file ({e}); copy it again")))?;
    let mut names = file.names();
    names.sort_unstable();
    let is_matrix = |n: &&&str| {
        file.tensor(n).is_ok_and(|t| t.shape().len() == 2 && matches!(t.dtype(), Dtype::F32 | Dtype::F64))
    };
    let chosen = match tensor {
        Some(name) => names.iter().find(|n| **n == name).copied(),
        None => NAMES.iter().find(|n| names.contains(n)).copied().or_else(|| {
            let mut matrices = names.iter().filter(is_matrix);
            matrices.next().filter(|_| matrices.next().is_none()).copied()
        }),
    };
    let Some(name) = chosen else {
        let names = names.join(", ");
        return Err(wrong(match tensor {
            Some(name) => format!("has no tensor `{name}`; it holds: {names}"),
            None => format!("choose a tensor with --tensor; it holds: {names}"),
        }));
    };
    let view = file.tensor(name).map_err(|e| wrong(e.to_string()))?;
    let dtype = match view.dtype() {
        Dtype::F32 => "f4",
        Dtype::F64 => "f8",
        Dtype::I64 => "i8",
        Dtype::I32 => "i4",
        Dtype::I16 => "i2",
        Dtype::I8 => "i1",
        Dtype::U64 => "u8",
        Dtype::U32 => "u4",
        Dtype::U16 => "u2",
        Dtype::U8 => "u1",
        _ => "",
    };
    let dtype = if dtype.is_empty() { format!("{:?}", view.dtype()) } else { dtype.to_string() };
    // The view borrows the mapped bytes, so its distance from their start is its offset.
    let offset = view.data().as_ptr() as usize - bytes.as_ptr() as usize;
    Ok(Array { name: format!("tensor `{name}`"), dtype, shape: view.shape().to_vec(), offset })
}

#[cfg(test)]
mod tests {
    use super::*;
    use pauc_testing::npy::file as npy_file;
    use safetensors::tensor::TensorView;
    use std::path::PathBuf;

    fn write(folder: &tempfile::TempDir, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn floats(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    fn error(path: &Path) -> String {
        Matrix::open(path, None).unwrap_err().to_string()
    }

    #[test]
    fn the_same_matrix_from_every_kind_of_file() {
        let f = tempfile::tempdir().unwrap();
        let want = [1.0f32, -2.5, 3.0, 4.0, 0.125, 6.0];
        let wide: Vec<u8> = want.iter().flat_map(|v| (*v as f64).to_le_bytes()).collect();
        let bytes = floats(&want);
        let view = TensorView::new(Dtype::F32, vec![3, 2], &bytes).unwrap();
        let file = safetensors::serialize([("anything", view)], None).unwrap();
        for (path, mapped) in [
            (write(&f, "a.npy", npy_file("<f4", false, "(3, 2)", &bytes)), true),
            (write(&f, "b.npy", npy_file("<f8", false, "(3, 2)", &wide)), false),
            (write(&f, "c.safetensors", file), true),
            (write(&f, "d.csv", "x,y\n1,-2.5\n3, 4\n\n0.125,6e0\n"), false),
            (write(&f, "e.tsv", "1\t-2.5\n3\t4\n0.125\t6"), false),
        ] {
            let matrix = Matrix::open(&path, None).unwrap();
            assert_eq!((matrix.rows().data, matrix.rows().cols), (&want[..], 2), "{path:?}");
            assert_eq!(matrix.is_mapped(), mapped, "{path:?}");
        }
    }

    #[test]
    fn damaged_files_are_named() {
        let f = tempfile::tempdir().unwrap();
        let good = npy_file("<f4", false, "(3, 2)", &floats(&[1.0; 6]));
        let cases = [
            (
                write(&f, "cut.npy", &good[..good.len() - 5]),
                "is truncated: expected 24 bytes after the header, got 19",
            ),
            (write(&f, "head.npy", &good[..40]), "truncated within its header"),
            (write(&f, "four.npy", &good[..4]), "truncated within its header"),
            (write(&f, "text.npy", "hello, world"), "is not a .npy file"),
            (
                write(&f, "int.npy", npy_file("<i8", false, "(1, 2)", &[0; 16])),
                "holds i8; expected 32-bit floats",
            ),
            (write(&f, "half.npy", npy_file("<f2", false, "(1, 2)", &[0; 4])), "astype('float32')"),
            (write(&f, "big.npy", npy_file(">f4", false, "(1, 1)", &[0; 4])), "type `>f4`"),
            (write(&f, "object.npy", npy_file("|O", false, "(1, 1)", &[0; 4])), "type `|O`"),
            (write(&f, "order.npy", npy_file("<f4", true, "(3, 2)", &[0; 24])), "column-major"),
            (write(&f, "line.npy", npy_file("<f4", false, "(6,)", &[0; 24])), "shape [6]; expected a matrix"),
            (write(&f, "none.npy", npy_file("<f4", false, "(0, 2)", &[])), "is empty"),
            (
                write(&f, "much.npy", npy_file("<f4", false, "(99999999999999, 99999999)", &[])),
                "larger than any memory",
            ),
            (write(&f, "zero.npy", []), "the file is empty"),
            (write(&f, "x.safetensors", "12345678abc"), "truncated or corrupt"),
            (write(&f, "y.csv", "1,2\n3,abc\n"), "line 2, column 2: `abc` is not a number"),
            (write(&f, "z.csv", "1,2\n3\n"), "line 2 has 1 values; expected 2, as in the first row"),
            (write(&f, "empty.csv", "a,b\n"), "no rows of numbers"),
            (f.path().join("nowhere.npy"), "not found; give a .safetensors"),
            (write(&f, "x.hdf5", "PAR1"), "unknown kind of file"),
        ];
        for (path, says) in cases {
            let text = error(&path);
            assert!(text.contains(says) && text.contains(&path.display().to_string()), "{says}: {text}");
        }
    }

    #[test]
    fn tensors_are_chosen_by_name() {
        let f = tempfile::tempdir().unwrap();
        let bytes = floats(&[1.0; 6]);
        let view = |rows| TensorView::new(Dtype::F32, vec![rows, 2], &bytes[..rows * 8]).unwrap();
        let path = write(
            &f,
            "two.safetensors",
            safetensors::serialize([("a", view(3)), ("b", view(2))], None).unwrap(),
        );
        assert!(error(&path).contains("choose a tensor with --tensor; it holds: a, b"));
        assert_eq!(Matrix::open(&path, Some("b")).unwrap().rows().rows, 2);
        assert!(Matrix::open(&path, Some("c")).unwrap_err().to_string().contains("no tensor `c`"));
        let file = safetensors::serialize([("features", view(1)), ("b", view(2))], None).unwrap();
        assert_eq!(Matrix::open(&write(&f, "f.safetensors", file), None).unwrap().rows().rows, 1);
    }

    #[test]
    fn labels_of_every_width_and_their_mistakes() {
        let f = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = [3i64, 0, 7].iter().flat_map(|v| v.to_le_bytes()).collect();
        let view = TensorView::new(Dtype::I64, vec![3], &bytes).unwrap();
        for path in [
            write(&f, "l.npy", npy_file("<i8", false, "(3,)", &bytes)),
            write(&f, "l1.npy", npy_file("|u1", false, "(3,)", &[3, 0, 7])),
            write(&f, "l2.npy", npy_file("<i2", false, "(3,)", &[3, 0, 0, 0, 7, 0])),
            write(&f, "l.csv", "class\n3\n0\n7\n"),
            write(&f, "l.safetensors", safetensors::serialize([("labels", view)], None).unwrap()),
        ] {
            assert_eq!(labels(&path, 3).unwrap(), [3, 0, 7], "{path:?}");
            assert!(labels(&path, 4).unwrap_err().to_string().contains("3 labels for 4 samples"));
        }
        let text = |path: PathBuf| labels(&path, 3).unwrap_err().to_string();
        assert!(text(write(&f, "m.csv", "1\n-1\n2\n")).contains("label 1 is -1"));
        assert!(text(write(&f, "w.csv", "1\ncat\n2\n")).contains("line 2: `cat`"));
        assert!(
            text(write(&f, "m.npy", npy_file("<f4", false, "(3,)", &[0; 12]))).contains("expected integers")
        );
    }
}
