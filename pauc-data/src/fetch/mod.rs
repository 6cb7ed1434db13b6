//! Fetching standard datasets from where their authors keep them; needs the feature `download`.
//!
//! A file grows under a name of its own, ending in `.part`, and gets its real name only when its checksum is right; an
//! archive is unpacked into a folder of its own in the same way. So whatever has its real name is complete, and what an
//! interruption leaves behind is continued by the next try.

mod download;
mod official;
mod unpack;

pub use download::{Progress, download};
pub use official::official;

use pauc_traits::{Error, Result};
use std::path::{Path, PathBuf};

/// A dataset as its authors offer it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteSet {
    /// The dataset's name, as recipes write it.
    pub name: String,
    /// The folder of the files on the server, ending in `/`.
    pub source: String,
    /// The files.
    pub files: Vec<RemoteFile>,
    /// What comes out of the archive, if the set is one.
    pub unpacked: Option<Unpacked>,
}

/// A file on a server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteFile {
    /// Its name, here and there.
    pub name: String,
    /// The MD5 of its content, 32 hexadecimal digits, as its authors or torchvision published it.
    pub md5: String,
}

/// What an archive holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unpacked {
    /// The folder that everything lies in.
    pub folder: String,
    /// The files that have to be in it, with their lengths in bytes.
    pub members: Vec<(String, u64)>,
}

/// What was done for a dataset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fetched {
    /// It was there already, with the right checksums or lengths.
    AlreadyThere,
    /// It was fetched, in part or whole.
    Now,
}

/// Brings the files of `set` into the folder `root`, from the folder at the URL `from` if one is given.
///
/// # Errors
/// If a server cannot be reached or does not have a file, a checksum is wrong, a file of another content is in the way,
/// or the disk refuses.
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

/// Where `name` lies: below `base`, or `base` itself if that is the file already.
fn location(base: &str, name: &str) -> String {
    if base.rsplit('/').next() == Some(name) {
        return base.to_string();
    }
    format!("{}/{name}", base.trim_end_matches('/'))
}

impl Unpacked {
    /// Whether every member is below `root` with its length.
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
    fn official_sets_are_well_formed_and_known_to_the_registry() {
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
