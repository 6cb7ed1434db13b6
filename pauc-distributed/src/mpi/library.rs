//! The MPI library, found when the program runs.

use super::functions::{Calls, Functions, Pointer};
use crate::Family;
use std::ffi::c_int;

/// The environment variable with the library's path.
pub const VARIABLE: &str = "PAUC_MPI";

// The file names of the three ABIs. Libraries of either family may have the standard one, of MPI 5.
const OPEN_MPI: &str = "libmpi.so.40";
const STANDARD: &str = "libmpi_abi.so.1";
const MPICH: &str = "libmpi.so.12";

/// An MPI library in this process. It stays until the process ends.
#[derive(Debug)]
pub struct Library {
    /// The file name or path.
    pub file: String,
    /// Its name and version, as the library says.
    pub version: String,
    pub(super) calls: Box<dyn Calls>,
}

impl Library {
    /// Returns the family, by what the library says of itself.
    pub fn family(&self) -> Family {
        if self.version.contains("Open MPI") { Family::OpenMpi } else { Family::Mpich }
    }
}

/// Why there is no MPI library to use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LibraryError {
    /// None was found.
    #[error(
        "no MPI library was found ({}); install Open MPI, MPICH or Intel MPI, add its folder to LD_LIBRARY_PATH, \
         or set {VARIABLE} to its path", .0.join("; ")
    )]
    Missing(Vec<String>),
    /// A library is there, but of another family.
    #[error("the MPI library found, {file} ({version}), does not belong to this launcher")]
    Family {
        /// The file name or path.
        file: String,
        /// What the library says of itself.
        version: String,
    },
}

/// Finds a library of the family: the one that `PAUC_MPI` names, or the first of the known names that the system
/// finds.
///
/// # Errors
/// If there is none.
pub fn find(family: Option<Family>) -> Result<Library, LibraryError> {
    let asked = std::env::var(VARIABLE).ok().filter(|path| !path.is_empty());
    let names = match (&asked, family) {
        (Some(path), _) => vec![path.as_str()],
        (None, Some(Family::Mpich)) => vec![STANDARD, MPICH, OPEN_MPI],
        (None, _) => vec![OPEN_MPI, STANDARD, MPICH],
    };
    let (mut problems, mut other) = (Vec::new(), None);
    for name in names {
        match open(name) {
            Ok(library) if family.is_none_or(|family| family == library.family()) => {
                share_symbols(name);
                return Ok(library);
            }
            Ok(Library { file, version, .. }) => {
                other = other.or(Some(LibraryError::Family { file, version }));
            }
            Err(e) => problems.push(e),
        }
    }
    Err(other.unwrap_or(LibraryError::Missing(problems)))
}

/// Opens a library and asks for its version, which MPI allows before it is initialized.
fn open(name: &str) -> Result<Library, String> {
    let library = load(name, false)?;
    // The library is never unloaded: it may have started threads.
    let library: &'static libloading::Library = Box::leak(Box::new(library));
    let calls = functions(library, name)?;
    Ok(Library { file: name.into(), version: name_and_version(&calls.version()), calls })
}

/// Shortens what a library says of itself, such as `MPICH Version:      5.0.2` and ten lines more.
fn name_and_version(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    let start = line.split([',', '\0']).next().unwrap_or_default();
    start.replace("Version:", "").split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Finds the functions, for the ABI that the library has.
fn functions(library: &'static libloading::Library, name: &str) -> Result<Box<dyn Calls>, String> {
    let data = |symbol: &str| {
        // SAFETY: only the address of this object is used. The library stays loaded.
        let address = unsafe { library.get::<*mut std::ffi::c_void>(symbol.as_bytes()) };
        address.map(|address| Pointer(*address)).map_err(|e| e.to_string())
    };
    if name.contains("mpi_abi") {
        // The values of the MPI standard, version 5.0, section 20.2.
        let handle = |value: usize| Pointer(std::ptr::without_provenance_mut(value));
        return Functions::find(library, 1024, handle(0x101), handle(0x247), handle(0x143));
    }
    if let Ok(world) = data("ompi_mpi_comm_world") {
        let (byte, errors_return) = (data("ompi_mpi_byte")?, data("ompi_mpi_errors_return")?);
        return Functions::find(library, 1, world, byte, errors_return);
    }
    // The values of mpi.h of MPICH, which its ABI initiative fixes.
    Functions::<c_int>::find(library, 1, 0x4400_0000, 0x4c00_010d, 0x5400_0001)
}

#[cfg(unix)]
fn load(name: &str, shares_symbols: bool) -> Result<libloading::Library, String> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LOCAL, RTLD_NOW};
    let scope = if shares_symbols { RTLD_GLOBAL } else { RTLD_LOCAL };
    // SAFETY: the initializers of MPI libraries have no preconditions.
    let library = unsafe { Library::open(Some(name), RTLD_NOW | scope) };
    library
        .map(Into::into)
        .map_err(|e| std::error::Error::source(&e).map_or(e.to_string(), |s| s.to_string()))
}

#[cfg(not(unix))]
fn load(name: &str, _: bool) -> Result<libloading::Library, String> {
    Err(format!("{name}: MPI is supported on Unix only"))
}

/// Lets the plugins of a loaded library find its symbols. A library of the wrong family must not share its own.
fn share_symbols(name: &str) {
    // A failure would show when MPI is initialized.
    if let Ok(library) = load(name, true) {
        std::mem::forget(library);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_shortened() {
        let open_mpi = "Open MPI v4.1.4, package: Debian OpenMPI, ident: 4.1.4\0";
        assert_eq!(name_and_version(open_mpi), "Open MPI v4.1.4");
        assert_eq!(name_and_version("MPICH Version:      5.0.2\nMPICH Release date: …"), "MPICH 5.0.2");
        assert_eq!(
            name_and_version("Intel(R) MPI Library 2021.18 for Linux* OS\n"),
            "Intel(R) MPI Library 2021.18 for Linux* OS"
        );
        assert_eq!(name_and_version(""), "");
    }

    #[test]
    fn a_missing_library_is_named() {
        let problem = open("libpauc-has-no-such-mpi.so.0").unwrap_err();
        assert!(problem.contains("libpauc-has-no-such-mpi.so.0"), "{problem}");
        let text = LibraryError::Missing(vec![problem]).to_string();
        assert!(text.contains("PAUC_MPI") && text.contains("no-such-mpi"), "{text}");
    }

    /// A library without MPI's functions, which every Linux has.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[test]
    fn a_library_without_mpi_is_an_error() {
        let problem = open("libm.so.6").unwrap_err();
        assert!(problem.contains("MPI_"), "{problem}");
    }
}
