//! The folders that exports write.

use pauc_traits::{Error, Result};
use std::fs;
use std::path::Path;

/// Checks that an export of these `files` may create or replace the folder `out`.
///
/// # Errors
/// If `out` is a file, or a folder that is not empty and `force` is false, or one that has anything but such files:
/// those may not belong to an export.
pub fn check_target(out: &Path, files: &[&str], force: bool) -> Result<()> {
    let refuse = |why: String| Err(Error::config(format!("{}: {why}", out.display())));
    if out.is_file() {
        return refuse("is a file; `--out` names the folder to write".into());
    }
    let entries = match fs::read_dir(out) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io(out, e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry.map_err(|e| Error::io(out, e))?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    if names.is_empty() {
        return Ok(());
    }
    if let Some(other) = names.iter().find(|name| !files.contains(&name.as_str())) {
        return refuse(format!("contains `{other}`, which no export writes; choose another folder"));
    }
    if force { Ok(()) } else { refuse("is an export already; `--force` replaces it".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_earlier_exports_are_replaced_and_only_on_request() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let check =
            |force| check_target(&out, &["config.json", "README.md"], force).map_err(|e| e.to_string());
        assert_eq!(check(false), Ok(()));
        fs::create_dir(&out).unwrap();
        assert_eq!(check(false), Ok(()), "an empty folder");
        fs::write(out.join("config.json"), "{}").unwrap();
        assert!(check(false).unwrap_err().contains("--force"));
        assert_eq!(check(true), Ok(()));
        fs::write(out.join("thesis.tex"), "").unwrap();
        assert!(check(true).unwrap_err().contains("`thesis.tex`"));
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(check_target(&file, &[], true).unwrap_err().to_string().contains("is a file"));
    }
}
