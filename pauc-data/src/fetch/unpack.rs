//! Unpacks a downloaded archive.

use super::Unpacked;
use pauc_traits::{Error, Result, atomic};
use std::fs::{self, File};
use std::path::{Component, Path};

/// Unpacks the gzipped tar `archive` so that its folder appears below `root` complete or not at all.
///
/// Only regular files directly in that folder are unpacked, so no archive can write outside of it.
///
/// # Errors
/// If the archive is damaged, a member is missing or has another length, a folder of that name exists, or the
/// disk cannot be written.
pub(super) fn unpack(archive: &Path, root: &Path, what: &Unpacked) -> Result<()> {
    let target = root.join(&what.folder);
    if target.exists() {
        let message = "exists but is not complete; remove it, or choose another folder";
        return Err(Error::damaged(&target, message));
    }
    let growing = root.join(format!(".{}.part", what.folder));
    if growing.exists() {
        fs::remove_dir_all(&growing).map_err(|e| Error::io(&growing, e))?;
    }
    fs::create_dir(&growing).map_err(|e| Error::io(&growing, e))?;
    let damaged =
        |e: std::io::Error| Error::damaged(archive, format!("cannot be unpacked: {e}; download it again"));
    let file = File::open(archive).map_err(|e| Error::io(archive, e))?;
    let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(std::io::BufReader::new(file)));
    for entry in tar.entries().map_err(damaged)? {
        let mut entry = entry.map_err(damaged)?;
        let path = entry.path().map_err(damaged)?.into_owned();
        let mut parts = path.components().filter(|c| *c != Component::CurDir);
        let (Some(Component::Normal(folder)), Some(Component::Normal(name)), None) =
            (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        if folder != what.folder.as_str() || !entry.header().entry_type().is_file() {
            continue;
        }
        let path = growing.join(name);
        let mut file = File::create(&path).map_err(|e| Error::io(&path, e))?;
        std::io::copy(&mut entry, &mut file).map_err(damaged)?;
        file.sync_all().map_err(|e| Error::io(&path, e))?;
    }
    for (name, len) in &what.members {
        let unpacked = fs::metadata(growing.join(name)).map(|m| m.len()).ok();
        if unpacked != Some(*len) {
            let state = unpacked.map_or("is missing".into(), |n| format!("has {n} bytes"));
            return Err(Error::damaged(archive, format!("its member {name} {state}; expected {len} bytes")));
        }
    }
    atomic::rename(&growing, &target).map_err(|e| Error::io(&target, e))
}
