//! CUDA C++ sources, compiled by NVRTC when their first kernel is started.
//!
//! A kernel is `extern "C" __global__ void pauc_…(…)`. Blocks have [`crate::context::THREADS`] threads or fewer in one dimension,
//! grids one dimension; there is no shuffle, no atomic addition and no dynamic shared memory, so that every sum has one
//! order and the same source also runs on the emulated device.

use crate::{Error, Result};
use cudarc::nvrtc::{CompileOptions, compile_ptx_with_opts};
use std::collections::HashMap;
use std::sync::Mutex;

/// A file of kernels.
#[derive(Debug)]
pub(crate) struct File {
    pub name: &'static str,
    source: &'static str,
}

/// What every file begins with.
const COMMON: &str = include_str!("kernels/common.cuh");

macro_rules! files {
    ($($name:literal),*) => { &[$(File { name: $name, source: include_str!(concat!("kernels/", $name, ".cu")) }),*] };
}

/// All files.
pub(crate) const FILES: &[File] = files![
    "elementwise",
    "many",
    "norm",
    "maps",
    "rows",
    "distance",
    "halves",
    "softmax",
    "tokens",
    "neighbours",
    "regression"
];

impl File {
    /// The kernels' names.
    pub fn names(&self) -> Vec<&'static str> {
        let after = self.source.split("__global__ void ").skip(1);
        after.filter_map(|s| s.split_once('(').map(|(name, _)| name.trim())).collect()
    }

    /// Whether it has a kernel.
    pub fn has(&self, kernel: &str) -> bool {
        self.names().contains(&kernel)
    }

    /// The file for a compute capability; compiled once a process.
    pub fn compiled(&self, capability: (i32, i32)) -> Result<String> {
        type Compiled = HashMap<(&'static str, (i32, i32)), String>;
        static DONE: Mutex<Option<Compiled>> = Mutex::new(None);
        let mut done = DONE.lock().unwrap_or_else(|e| e.into_inner());
        let done = done.get_or_insert_default();
        if let Some(found) = done.get(&(self.name, capability)) {
            return Ok(found.clone());
        }
        let source = format!("{COMMON}\n{}", self.source);
        let (major, minor) = capability;
        let options = |arch: Option<&'static str>| CompileOptions { arch, ..CompileOptions::default() };
        // A compiler older than the GPU does not know it; what it writes by default, the driver translates.
        // The option lives as long as the process, as the one compilation of a file for a capability does.
        let exact = options(Some(String::leak(format!("compute_{major}{minor}"))));
        let compiled = compile_ptx_with_opts(&source, exact)
            .or_else(|_| compile_ptx_with_opts(&source, options(None)))
            .map_err(|e| Error::Compile { file: self.name, message: e.to_string() })?
            .to_src();
        done.insert((self.name, capability), compiled.clone());
        Ok(compiled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_has_one_home_and_the_projects_prefix() {
        let mut names: Vec<_> = FILES.iter().flat_map(File::names).collect();
        assert!(names.iter().all(|n| n.starts_with("pauc_")), "{names:?}");
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
