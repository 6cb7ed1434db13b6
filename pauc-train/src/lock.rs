//! The lock of a run's folder, and the removal of files that killed processes left there.

use crate::run_dir::RunDir;
use pauc_traits::{Error, Result, atomic};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

/// The lock file. It also marks a folder as a run's before `run.json` is written.
const FILE: &str = "run.lock";

/// The right to write to a run's folder. The system releases it when the process ends, however it ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// The lock file that a folder had at some moment. Without it, a second process could enter the folder.
#[derive(Debug)]
pub(crate) struct Claim {
    path: PathBuf,
    file: Option<(u64, u64)>,
}

impl Claim {
    /// Remembers the lock file of a folder, if it has one.
    pub fn on(dir: &RunDir) -> Self {
        let path = dir.path().join(FILE);
        Claim { file: identity(&path), path }
    }

    /// Checks that the folder still has this lock file.
    ///
    /// # Errors
    /// [`Error::Config`] if it was deleted or replaced.
    pub fn check(&self) -> Result<()> {
        if self.file == identity(&self.path) {
            return Ok(());
        }
        let run = self.path.parent().unwrap_or(&self.path).display();
        Err(Error::config(format!(
            "{} was deleted or replaced; this process stops, since another one may be working on the run; if none \
             is, `pauc-cli resume {run}` continues it",
            self.path.display()
        )))
    }
}

/// Returns what tells a file from all others, if it exists.
#[cfg(unix)]
fn identity(path: &Path) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

/// Other systems do not delete an open file.
#[cfg(not(unix))]
fn identity(_: &Path) -> Option<(u64, u64)> {
    None
}

/// The process that holds the lock of a run's folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Holder {
    /// The process of this id.
    Process(String),
    /// A process whose id cannot be read.
    Unnamed,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Holder::Process(id) => write!(f, "process {id}"),
            Holder::Unnamed => f.write_str("another process"),
        }
    }
}

impl Holder {
    /// Reads the name that the holder of a locked file wrote there. On Windows a locked file cannot be read.
    fn of(mut file: &File) -> Self {
        let mut id = String::new();
        match file.read_to_string(&mut id) {
            Ok(_) if !id.trim().is_empty() => Holder::Process(id.trim().to_string()),
            _ => Holder::Unnamed,
        }
    }
}

impl RunDir {
    /// Returns the process that is working on the run, if there is one. Changes nothing in the folder.
    ///
    /// # Errors
    /// If the lock file cannot be read, or the file system has no locks.
    pub fn holder(&self) -> Result<Option<Holder>> {
        let path = self.path().join(FILE);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(&path, e)),
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(None),
            Err(TryLockError::WouldBlock) => Ok(Some(Holder::of(&file))),
            Err(TryLockError::Error(e)) => Err(Error::io(&path, e)),
        }
    }

    /// Locks the folder for this process, and removes the temporary files of processes that have ended.
    ///
    /// # Errors
    /// [`Error::Config`] naming the folder and the process that holds the lock, or [`Error::Io`] if the disk
    /// fails.
    pub fn lock(&self) -> Result<Lock> {
        let path = self.path().join(FILE);
        let io = |e| Error::io(&path, e);
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = open.map_err(io)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::config(format!(
                    "{}: {} is working on this run; wait until it ends, or stop it",
                    self.path().display(),
                    Holder::of(&file)
                )));
            }
            Err(TryLockError::Error(e)) => return Err(io(e)),
        }
        file.set_len(0).map_err(io)?;
        file.rewind().map_err(io)?;
        writeln!(file, "{}", std::process::id()).map_err(io)?;
        for folder in ["", "checkpoints", "figures"] {
            remove_temporaries(&self.path().join(folder))?;
        }
        Ok(Lock { _file: file })
    }

    /// Creates the folder and locks it. The lock is its first file, since a folder with files but without a
    /// lock is never taken for a run: a process that died in between would leave a folder that no run may use.
    ///
    /// # Errors
    /// As for [`RunDir::lock`].
    pub fn create_locked(&self) -> Result<Lock> {
        fs::create_dir_all(self.path()).map_err(|e| Error::io(self.path(), e))?;
        self.lock()
    }

    /// Empties the folder for a new run, except for the lock, which the caller holds.
    ///
    /// # Errors
    /// [`Error::Config`] if the folder contains something other than a run, which is then left alone;
    /// [`Error::Io`] if the disk fails.
    pub fn clear(&self, _lock: &Lock) -> Result<()> {
        // Remove `run.json` first, so that a half-emptied folder counts as a run that has to start over.
        let description = self.path().join("run.json");
        if description.exists() {
            fs::remove_file(&description).map_err(|e| Error::io(&description, e))?;
        }
        for entry in fs::read_dir(self.path()).map_err(|e| Error::io(self.path(), e))? {
            let path = entry.map_err(|e| Error::io(self.path(), e))?.path();
            if path.file_name().is_some_and(|n| n == FILE) {
                continue;
            }
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(|e| Error::io(&path, e))?;
        }
        Ok(())
    }

    /// Returns whether the folder is missing, empty, or contains a run.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn is_free_or_run(&self) -> Result<bool> {
        let known = |name: &str| self.path().join(name).exists();
        match fs::read_dir(self.path()) {
            Ok(mut entries) => Ok(entries.next().is_none() || known(FILE) || known("run.json")),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(true),
            Err(e) => Err(Error::io(self.path(), e)),
        }
    }
}

/// What a process has written before it has described its run.
const BEFORE_THE_DESCRIPTION: [&str; 4] = [FILE, "recipe.ron", "recipe.resolved.ron", "data_errors.jsonl"];

impl RunDir {
    /// Returns the first result of a run in the folder, by name: a checkpoint, or any file that a process that
    /// has just begun does not write.
    ///
    /// # Errors
    /// If the folder cannot be read.
    pub fn first_result(&self) -> Result<Option<String>> {
        let mut found = Vec::new();
        for folder in ["", "checkpoints", "figures"] {
            let path = self.path().join(folder);
            let entries = match fs::read_dir(&path) {
                Ok(entries) => entries,
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
                Err(e) => return Err(Error::io(&path, e)),
            };
            for entry in entries {
                let entry = entry.map_err(|e| Error::io(&path, e))?;
                let name = Path::new(folder).join(entry.file_name()).display().to_string();
                let is_expected = ["checkpoints", "figures"].contains(&name.as_str())
                    || BEFORE_THE_DESCRIPTION.contains(&name.as_str())
                    || entry.path().extension().is_some_and(|e| e == atomic::EXTENSION);
                found.extend((!is_expected).then_some(name));
            }
        }
        found.sort();
        Ok(found.into_iter().next())
    }
}

fn remove_temporaries(folder: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(folder) else { return Ok(()) };
    for entry in entries.flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if path.extension().is_some_and(|e| e == atomic::EXTENSION)
            && path.is_file()
            && !atomic::is_of_another_living_process(&name)
        {
            fs::remove_file(&path).map_err(|e| Error::io(&path, e))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_refused_by_name_until_the_first_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let dir = RunDir::at(folder.path());
        assert_eq!(dir.holder().unwrap(), None);
        assert!(!folder.path().join(FILE).exists(), "a look creates no file");
        let first = dir.lock().unwrap();
        assert_eq!(dir.holder().unwrap(), Some(Holder::Process(std::process::id().to_string())));
        let error = dir.lock().unwrap_err().to_string();
        let process = format!("process {}", std::process::id());
        assert!(error.contains(&process) && error.contains(&folder.path().display().to_string()), "{error}");
        drop(first);
        assert_eq!(dir.holder().unwrap(), None);
        dir.lock().unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn a_deleted_or_replaced_lock_file_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let dir = RunDir::at(folder.path());
        Claim::on(&dir).check().unwrap();
        let _lock = dir.lock().unwrap();
        let claim = Claim::on(&dir);
        claim.check().unwrap();
        fs::remove_file(folder.path().join(FILE)).unwrap();
        let error = claim.check().unwrap_err().to_string();
        assert!(error.contains("run.lock was deleted or replaced"), "{error}");
        let _second = dir.lock().unwrap();
        assert!(claim.check().is_err());
    }

    #[test]
    fn a_folder_belongs_to_a_run_from_its_first_file_on() {
        let folder = tempfile::tempdir().unwrap();
        let dir = RunDir::at(folder.path().join("new/seed0"));
        let _lock = dir.create_locked().unwrap();
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, [FILE]);
        assert!(dir.is_free_or_run().unwrap());
    }

    #[test]
    fn temporaries_of_the_dead_go_and_those_of_the_living_stay() {
        let folder = tempfile::tempdir().unwrap();
        let dir = RunDir::at(folder.path());
        dir.create().unwrap();
        let dead = u32::MAX; // larger than any process id
        let at = |name: String| folder.path().join(name);
        let gone = [at(format!(".run.json.{dead}.tmp")), at(format!("checkpoints/.last.{dead}.tmp"))];
        gone.iter().chain([&at("report.html.tmp".into())]).for_each(|p| fs::write(p, "x").unwrap());
        fs::write(at("notes".into()), "x").unwrap();
        dir.lock().unwrap();
        assert!(gone.iter().all(|p| !p.exists()) && !at("report.html.tmp".into()).exists());
        assert!(at("notes".into()).exists());
        if Path::new("/proc/1").exists() {
            let living = at(".report.html.1.tmp".into());
            fs::write(&living, "x").unwrap();
            dir.lock().unwrap();
            assert!(living.exists() || std::process::id() == 1);
        }
    }

    #[test]
    fn results_are_told_from_what_every_process_writes_first() {
        let folder = tempfile::tempdir().unwrap();
        let dir = RunDir::at(folder.path().join("run"));
        assert_eq!(dir.first_result().unwrap(), None);
        dir.create().unwrap();
        let _lock = dir.lock().unwrap();
        for name in ["recipe.ron", "recipe.resolved.ron", "data_errors.jsonl", ".run.json.7.tmp"] {
            dir.write(name, "x").unwrap();
        }
        assert_eq!(dir.first_result().unwrap(), None);
        dir.write("thesis.tex", "x").unwrap();
        assert_eq!(dir.first_result().unwrap().unwrap(), "thesis.tex");
        dir.write("checkpoints/last.safetensors", "x").unwrap();
        assert!(dir.first_result().unwrap().unwrap().ends_with("last.safetensors"));
    }

    #[test]
    fn only_a_run_is_cleared() {
        let folder = tempfile::tempdir().unwrap();
        let dir = RunDir::at(folder.path());
        assert!(
            dir.is_free_or_run().unwrap() && RunDir::at(folder.path().join("no")).is_free_or_run().unwrap()
        );
        fs::write(folder.path().join("thesis.tex"), "x").unwrap();
        assert!(!dir.is_free_or_run().unwrap());
        fs::remove_file(folder.path().join("thesis.tex")).unwrap();
        dir.create().unwrap();
        let lock = dir.lock().unwrap();
        dir.write("run.json", "{}").unwrap();
        dir.write("checkpoints/a", "x").unwrap();
        dir.clear(&lock).unwrap();
        let left: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, [FILE]);
    }
}
