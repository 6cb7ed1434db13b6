//! Downloads one file over HTTP.

use super::Fetched;
use pauc_traits::{Error, Result, atomic};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The progress of a download.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The file.
    pub path: &'a Path,
    /// Bytes downloaded so far.
    pub bytes: u64,
    /// The size of the file in bytes, if the server gives it.
    pub total: Option<u64>,
}

/// Broken connections in a row without a new byte after which the download fails.
const FRUITLESS: usize = 3;
/// The timeout for connecting and for each read.
const SILENCE: Duration = Duration::from_secs(60);

/// Downloads the file at `url` to `path`, unless it exists. `md5` is the MD5 of its content in hexadecimal
/// digits.
///
/// Resumes an interrupted download if the server supports range requests. Reconnects after a broken
/// connection, as long as new bytes arrive.
///
/// # Errors
/// If the server cannot be reached or does not have the file, the checksum does not match, a file with other
/// content exists at `path`, or the disk cannot be written.
pub fn download(url: &str, path: &Path, md5: &str, watch: &mut dyn FnMut(&Progress<'_>)) -> Result<Fetched> {
    if path.exists() {
        let digest = Growing::open(path)?.digest();
        if digest == md5 {
            return Ok(Fetched::AlreadyThere);
        }
        let message = format!(
            "exists with the wrong MD5; expected {md5}, got {digest}; remove it, or choose another folder"
        );
        return Err(Error::damaged(path, message));
    }
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    let growing = path.with_file_name(format!("{name}.part"));
    let mut resumed = growing.exists();
    loop {
        let mut file = Growing::open(&growing)?;
        complete(url, path, &mut file, watch)?;
        let digest = file.digest();
        if digest == md5 {
            file.file.sync_all().map_err(|e| Error::io(&growing, e))?;
            atomic::rename(&growing, path).map_err(|e| Error::io(path, e))?;
            return Ok(Fetched::Now);
        }
        std::fs::remove_file(&growing).map_err(|e| Error::io(&growing, e))?;
        if !resumed {
            let message = format!(
                "{url} sent a file with the wrong MD5; expected {md5}, got {digest}; it was deleted; try again, or choose \
                 another source with --from"
            );
            return Err(Error::damaged(path, message));
        }
        // The partial file may have been the start of another file. Download once more from the beginning.
        resumed = false;
    }
}

/// A partial file and the MD5 of its content.
struct Growing {
    path: PathBuf,
    file: File,
    bytes: u64,
    hash: md5::Context,
}

impl Growing {
    /// Opens a file for appending, creates it if missing, and hashes its content.
    fn open(path: &Path) -> Result<Self> {
        let failed = |e| Error::io(path, e);
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path).map_err(failed)?;
        let (mut hash, mut bytes, mut part) = (md5::Context::new(), 0, vec![0; 1 << 16]);
        loop {
            let n = file.read(&mut part).map_err(failed)?;
            if n == 0 {
                return Ok(Growing { path: path.to_path_buf(), file, bytes, hash });
            }
            hash.consume(&part[..n]);
            bytes += n as u64;
        }
    }

    fn append(&mut self, part: &[u8]) -> Result<()> {
        self.file.write_all(part).map_err(|e| Error::io(&self.path, e))?;
        self.hash.consume(part);
        self.bytes += part.len() as u64;
        Ok(())
    }

    fn clear(&mut self) -> Result<()> {
        self.file.set_len(0).map_err(|e| Error::io(&self.path, e))?;
        (self.bytes, self.hash) = (0, md5::Context::new());
        Ok(())
    }

    fn digest(&self) -> String {
        format!("{:x}", self.hash.clone().finalize())
    }
}

/// Downloads the missing part.
fn complete(url: &str, path: &Path, file: &mut Growing, watch: &mut dyn FnMut(&Progress<'_>)) -> Result<()> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_connect(Some(SILENCE))
        .timeout_recv_response(Some(SILENCE))
        .timeout_per_read(Some(SILENCE))
        .user_agent(concat!("pauc/", env!("CARGO_PKG_VERSION")))
        .build()
        .into();
    let mut fruitless = 0;
    loop {
        let before = file.bytes;
        let broken = match attempt(&agent, url, path, file, watch)? {
            None => return Ok(()),
            Some(broken) => broken,
        };
        fruitless = if file.bytes > before { 0 } else { fruitless + 1 };
        if fruitless == FRUITLESS {
            let message = format!(
                "{url}: {broken}; {} bytes are saved in {}; run the same command again to resume",
                file.bytes,
                file.path.display()
            );
            return Err(Error::damaged(path, message));
        }
        std::thread::sleep(Duration::from_millis(200 << fruitless));
    }
}

/// Makes one request. Returns `None` if the file is complete according to the server, or else the reason why
/// it is not.
fn attempt(
    agent: &ureq::Agent,
    url: &str,
    path: &Path,
    file: &mut Growing,
    watch: &mut dyn FnMut(&Progress<'_>),
) -> Result<Option<String>> {
    let mut request = agent.get(url).header("Accept-Encoding", "identity");
    if file.bytes > 0 {
        request = request.header("Range", format!("bytes={}-", file.bytes));
    }
    let response = match request.call() {
        Ok(response) => response,
        Err(e) => return Ok(Some(e.to_string())),
    };
    let status = response.status().as_u16();
    let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok());
    let length = header("content-length").and_then(|v| v.parse::<u64>().ok());
    let range = header("content-range").map(str::to_string);
    let total = match status {
        200 => {
            file.clear()?; // the server ignored the range and sends the whole file
            length
        }
        206 => match range.as_deref().and_then(parse_range) {
            Some((start, total)) if start == file.bytes => total.or(length.map(|n| n + start)),
            _ => {
                file.clear()?;
                return Ok(Some(format!("the server sent the wrong range ({range:?})")));
            }
        },
        // No bytes follow: the file is complete, or too long, which the checksum detects.
        416 => return Ok(None),
        500..=599 | 408 | 429 => return Ok(Some(format!("the server answered with status {status}"))),
        _ => {
            let message = format!(
                "{url}: the server answered with status {status}; choose another source with --from URL"
            );
            return Err(Error::damaged(path, message));
        }
    };
    let mut body = response.into_body().into_reader();
    let mut part = vec![0; 1 << 16];
    loop {
        match body.read(&mut part) {
            Ok(0) => break,
            Ok(n) => file.append(&part[..n])?,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Ok(Some(format!("the connection was lost: {e}"))),
        }
        watch(&Progress { path, bytes: file.bytes, total });
    }
    match total {
        Some(total) if file.bytes < total => {
            Ok(Some(format!("the connection was closed after {} of {total} bytes", file.bytes)))
        }
        _ => Ok(None),
    }
}

/// Parses the start and total length of `bytes START-END/TOTAL`.
fn parse_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.trim().strip_prefix("bytes")?.trim().split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_parsed() {
        assert_eq!(parse_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(parse_range("bytes 5-9/*"), Some((5, None)));
        assert_eq!(parse_range("bytes */10"), None);
        assert_eq!(parse_range("lines 1-2/3"), None);
    }
}
