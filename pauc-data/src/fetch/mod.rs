//! Downloads of standard datasets from their authors' servers; needs the feature `download`.
//!
//! A file is downloaded to a name ending in `.part` and gets its final name only after its checksum matches.
//! An archive is unpacked in the same way, into a temporary folder. A file with its final name is therefore
//! complete, and the next attempt resumes an interrupted download.

mod download;
mod official;
mod unpack;

pub use download::{Progress, download};
pub use official::official;

use pauc_traits::{Error, Result};
use std::path::{Path, PathBuf};

/// A dataset on its authors' server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteSet {
    /// The name of the dataset in recipes.
    pub name: String,
    /// The URL of the folder, ending in `/`.
    pub source: String,
    /// The files.
    pub files: Vec<RemoteFile>,
    /// The content of the archive, if the dataset is an archive.
    pub unpacked: Option<Unpacked>,
}

/// A file on a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    /// Its name, on the server and on disk.
    pub name: String,
    /// The MD5 of its content, 32 hexadecimal digits, as published by the authors or by torchvision.
    pub md5: String,
}

/// The content of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// The folder that contains everything.
    pub folder: String,
    /// The required files, with their lengths in bytes.
    pub members: Vec<(String, u64)>,
}

/// The outcome of a fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// The files existed, with the right checksums or lengths.
    AlreadyThere,
    /// At least one file was downloaded.
    Now,
}

/// Downloads the files of `set` into the folder `root`, from the URL `from` if it is given.
///
/// # Errors
/// If a server cannot be reached or does not have a file, a checksum does not match, a file with other
/// content exists, or the disk cannot be written.
pub fn fetch(
    set: &RemoteSet,
    root: &Path,
    from: Option<&str>,
    watch: &mut dyn FnMut(&Progress<'_>),
) -> Result<Fetched> {
    std::fs::create_dir_all(root).map_err(|e| Error::io(root, e))?;
    if set.unpacked.as_ref().is_some_and(|u| u.is_whole(root)) {
        return Ok(Fetched::AlreadyThere);
    }
    let mut outcome = Fetched::AlreadyThere;
    for file in &set.files {
        let url = location(from.unwrap_or(&set.source), &file.name);
        if download(&url, &root.join(&file.name), &file.md5, watch)? == Fetched::Now {
            outcome = Fetched::Now;
        }
    }
    if let (Some(unpacked), [archive]) = (&set.unpacked, &set.files[..]) {
        let archive: PathBuf = root.join(&archive.name);
        unpack::unpack(&archive, root, unpacked)?;
        std::fs::remove_file(&archive).map_err(|e| Error::io(&archive, e))?;
        outcome = Fetched::Now;
    }
    Ok(outcome)
}

/// Returns the URL of `name`: below `base`, or `base` itself if that is the file's URL.
fn location(base: &str, name: &str) -> String {
    if base.rsplit('/').next() == Some(name) {
        return base.to_string();
    }
    format!("{}/{name}", base.trim_end_matches('/'))
}

impl Unpacked {
    /// Whether every member exists below `root` with the right length.
    fn is_whole(&self, root: &Path) -> bool {
        let folder = root.join(&self.folder);
        self.members.iter().all(|(name, len)| {
            std::fs::metadata(folder.join(name)).is_ok_and(|m| m.is_file() && m.len() == *len)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mirror_is_a_folder_or_the_file_itself() {
        for base in ["http://a/b", "http://a/b/", "http://a/b/c.gz"] {
            assert_eq!(location(base, "c.gz"), "http://a/b/c.gz");
        }
    }

    #[test]
    fn official_sets_are_well_formed_and_registered() {
        for set in official() {
            assert!(set.source.ends_with('/') && set.source.starts_with("http"), "{set:?}");
            assert!(set.files.iter().all(|f| f.md5.len() == 32
                && f.md5.chars().all(|c| c.is_ascii_hexdigit() && !c.is_ascii_uppercase())));
            assert_eq!(set.unpacked.is_some(), set.files.len() == 1, "{set:?}");
            let text = format!("{}(root: \"somewhere\")", set.name);
            pauc_traits::Configured::<dyn pauc_traits::Dataset>::parse(&text).unwrap();
        }
    }
}
