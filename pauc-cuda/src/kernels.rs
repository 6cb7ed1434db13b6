//! CUDA C++ sources, compiled by NVRTC when their first kernel is launched.
//!
//! A kernel is `extern "C" __global__ void pauc_…(…)`. Blocks have at most [`crate::context::THREADS`]
//! threads in one dimension; grids have one dimension. Kernels use no shuffle, no atomic addition and no
//! dynamic shared memory: every sum has a fixed order, and the same source runs on the emulated device.
//!
//! A parameter is `const T *` if the kernel only reads the memory, and `T *` otherwise. Launches check their
//! arguments against this.

use crate::kernel_args::{Arg, Kind, Pointee};
use crate::{Error, Result};
use cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};
use std::collections::HashMap;
use std::sync::{Mutex, OnceLock};

/// A file of kernels.
#[derive(Debug)]
pub(crate) struct File {
    pub name: &'static str,
    source: &'static str,
}

/// The beginning of every file.
const COMMON: &str = include_str!("kernels/common.cuh");

macro_rules! files {
    ($($name:literal),* $(,)?) => {
        &[$(File { name: $name, source: include_str!(concat!("kernels/", $name, ".cu")) }),*]
    };
}

/// All files.
pub(crate) const FILES: &[File] = files![
    "distance",
    "elementwise",
    "multi_tensor",
    "neighbors",
    "norm",
    "pooling",
    "regression",
    "rows",
    "softmax",
    "split_f16",
    "transformer",
];

/// A parameter of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Parameter {
    pub name: &'static str,
    /// `None` for a type that arguments cannot have.
    pub kind: Option<Kind>,
}

impl Parameter {
    /// Parses a declaration such as `const float *x`.
    fn parse(declaration: &'static str) -> Self {
        let declaration = declaration.trim();
        let is_separator = |c: char| !c.is_ascii_alphanumeric() && c != '_';
        let before_name = declaration.rfind(is_separator).map_or(0, |i| i + 1);
        let (of_type, name) = declaration.split_at(before_name);
        let kind = match of_type.trim().strip_suffix('*') {
            None => match of_type.trim() {
                "size_t" => Some(Kind::Count),
                "unsigned" => Some(Kind::U32),
                "float" => Some(Kind::F32),
                _ => None,
            },
            Some(pointee) => {
                let pointee = pointee.trim();
                let (is_const, pointee) = match pointee.strip_prefix("const ") {
                    Some(pointee) => (true, pointee),
                    None => (false, pointee),
                };
                let pointee = match pointee {
                    "void" => Pointee::Any,
                    "float" => Pointee::F32,
                    "double" => Pointee::F64,
                    "unsigned" => Pointee::U32,
                    "unsigned char" => Pointee::U8,
                    _ => Pointee::Table,
                };
                Some(if is_const { Kind::In(pointee) } else { Kind::Out(pointee) })
            }
        };
        Parameter { name, kind }
    }
}

impl File {
    /// Returns the kernels' names, each with the text of its parameters.
    fn declarations(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let after = self.source.split("__global__ void ").skip(1);
        after.filter_map(|text| {
            let (name, rest) = text.split_once('(')?;
            Some((name.trim(), rest.split_once(')')?.0))
        })
    }

    /// Returns the kernels' names.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        self.declarations().map(|(name, _)| name)
    }

    /// Returns the PTX for a compute capability. Each file is compiled once per process and capability.
    pub fn compiled(&self, capability: (i32, i32)) -> Result<String> {
        type Compiled = HashMap<(&'static str, (i32, i32)), String>;
        static CACHE: Mutex<Option<Compiled>> = Mutex::new(None);
        let mut cache = CACHE.lock().unwrap_or_else(|e| e.into_inner());
        let cache = cache.get_or_insert_default();
        if let Some(ptx) = cache.get(&(self.name, capability)) {
            return Ok(ptx.clone());
        }
        let source = format!("{COMMON}\n{}", self.source);
        let (major, minor) = capability;
        let options = |arch: Option<&'static str>| CompileOptions { arch, ..CompileOptions::default() };
        // A compiler older than the GPU does not know its architecture. The driver then translates the
        // compiler's default output. cudarc needs a `&'static str`, so one string per file and capability is
        // leaked.
        let exact = options(Some(String::leak(format!("compute_{major}{minor}"))));
        let ptx = compile_ptx_with_opts(&source, exact)
            .or_else(|_| compile_ptx_with_opts(&source, options(None)))
            .map_err(|e| Error::Compile { file: self.name, message: e.to_string() })?
            .to_src();
        cache.insert((self.name, capability), ptx.clone());
        Ok(ptx)
    }
}

/// The parameters of all kernels.
fn signatures() -> &'static HashMap<&'static str, Vec<Parameter>> {
    static SIGNATURES: OnceLock<HashMap<&'static str, Vec<Parameter>>> = OnceLock::new();
    SIGNATURES.get_or_init(|| {
        let declarations = FILES.iter().flat_map(File::declarations);
        declarations.map(|(name, list)| (name, list.split(',').map(Parameter::parse).collect())).collect()
    })
}

/// Checks that the arguments match the kernel's parameters in number and kind.
///
/// # Errors
/// If an argument is missing, is one too many, or has another kind. The error names it.
pub(crate) fn check(kernel: &'static str, arguments: &[Arg<'_>]) -> Result<()> {
    let refuse = |parameter, message| Err(Error::Argument { kernel, parameter, message });
    let Some(parameters) = signatures().get(kernel) else {
        return Err(Error::Compile { file: kernel, message: "no file has a kernel of this name".into() });
    };
    for (i, Parameter { name, kind }) in parameters.iter().enumerate() {
        let Some(kind) = kind else { return refuse(name, "no argument has this type".into()) };
        match arguments.get(i).map(Arg::kind) {
            None => return refuse(name, format!("expected {kind}; the argument is missing")),
            Some(given) if !kind.accepts(given) => {
                return refuse(name, format!("expected {kind}, got {given}"));
            }
            Some(_) => {}
        }
    }
    if arguments.len() > parameters.len() {
        let last = parameters.last().map_or("", |p| p.name);
        return refuse(
            last,
            format!("the last of {} parameters, but got {} arguments", parameters.len(), arguments.len()),
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel_args::{In, Out, Readable, Writable, args};

    /// Memory that is never accessed.
    struct Nowhere(Pointee);

    impl Readable for Nowhere {
        fn address(&self) -> u64 {
            0
        }
        fn pointee(&self) -> Pointee {
            self.0
        }
    }

    impl Writable for Nowhere {
        fn address(&self) -> u64 {
            0
        }
        fn pointee(&self) -> Pointee {
            self.0
        }
    }

    #[test]
    fn every_kernel_is_in_one_file_and_has_the_projects_prefix() {
        let mut names: Vec<_> = FILES.iter().flat_map(File::names).collect();
        assert!(names.iter().all(|n| n.starts_with("pauc_")), "{names:?}");
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    #[test]
    fn every_parameter_has_a_name_and_a_supported_kind() {
        assert_eq!(signatures().len(), FILES.iter().map(|f| f.source.matches("__global__").count()).sum());
        for (kernel, parameters) in signatures() {
            for p in parameters {
                assert!(p.kind.is_some() && !p.name.is_empty(), "{kernel}: {p:?}");
            }
        }
        let parse = Parameter::parse;
        assert_eq!(parse(" size_t n"), Parameter { name: "n", kind: Some(Kind::Count) });
        assert_eq!(parse("const float *x"), Parameter { name: "x", kind: Some(Kind::In(Pointee::F32)) });
        let chosen = Parameter { name: "from_2", kind: Some(Kind::Out(Pointee::U8)) };
        assert_eq!(parse("\n  unsigned char *from_2"), chosen);
        assert_eq!(parse("const Pair *all").kind, Some(Kind::In(Pointee::Table)));
        assert_eq!(parse("long double x").kind, None);
    }

    /// `pauc_add(size_t n, float a, const float *x, float *y)`.
    #[test]
    fn a_swapped_pair_or_a_missing_argument_is_refused_by_name() {
        let (x, y) = (|| In(Nowhere(Pointee::F32)), || Out(Nowhere(Pointee::F32)));
        let message = |arguments: &[Arg<'_>]| check("pauc_add", arguments).unwrap_err().to_string();
        check("pauc_add", args![3usize, 1f32, x(), y()]).unwrap();
        // An absent argument is a null pointer.
        check("pauc_add", args![3usize, 1f32, In(None::<Nowhere>), y()]).unwrap();

        let swapped = message(args![3usize, 1f32, y(), x()]);
        let expected = "kernel `pauc_add`, parameter `x`: expected memory to read of `float`, got memory to write of `float`";
        assert_eq!(swapped, expected);
        let swapped = message(args![1f32, 3usize, x(), y()]);
        assert_eq!(swapped, "kernel `pauc_add`, parameter `n`: expected a count (`size_t`), got a `float`");
        let missing = message(args![3usize, 1f32, x()]);
        let expected =
            "kernel `pauc_add`, parameter `y`: expected memory to write of `float`; the argument is missing";
        assert_eq!(missing, expected);
        let omitted = message(args![3usize, x(), y()]);
        assert!(omitted.starts_with("kernel `pauc_add`, parameter `a`: "), "{omitted}");
        let too_many = message(args![3usize, 1f32, x(), y(), 1u32]);
        assert!(too_many.starts_with("kernel `pauc_add`, parameter `y`: "), "{too_many}");
        let other_numbers = message(args![3usize, 1f32, In(Nowhere(Pointee::F64)), y()]);
        assert!(other_numbers.contains("`x`") && other_numbers.contains("`double`"), "{other_numbers}");
        assert!(message(args![3u32, 1f32, x(), y()]).contains("`n`"));
    }

    #[test]
    fn a_parameter_of_any_type_accepts_every_element() {
        for pointee in [Pointee::F32, Pointee::Half] {
            let arguments = args![0u32, 8usize, In(Nowhere(pointee)), Out(Nowhere(pointee))];
            check("pauc_add_maps", arguments).unwrap();
        }
        assert!(
            check("pauc_add", args![3usize, 1f32, In(Nowhere(Pointee::Half)), Out(Nowhere(Pointee::F32))])
                .is_err()
        );
        assert!(check("pauc_nothing", args![]).is_err());
    }
}
