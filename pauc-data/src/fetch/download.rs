//! One file over HTTP.

use super::Fetched;
use pauc_traits::{Error, Result, atomic};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How far a download is.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The file.
    pub path: &'a Path,
    /// Bytes that are there.
    pub bytes: u64,
    /// Bytes of the whole file, if the server tells.
    pub total: Option<u64>,
}

/// How often a connection may break without a single new byte before the download is given up.
const FRUITLESS: usize = 3;
/// How long a server may be silent.
const SILENCE: Duration = Duration::from_secs(60);

/// Brings the file at `url` to `path`, if it is not there yet; its content has the MD5 `md5` (hexadecimal digits).
///
/// What an earlier try left behind is continued if the server can send a part of a file. A connection that breaks is
/// opened again as long as that brings new bytes.
///
/// # Errors
/// If the server cannot be reached or does not have the file, the checksum is wrong, a file of another content is in the
/// way, or the disk refuses.
pub fn download(url: &str, path: &Path, md5: &str, watch: &mut dyn FnMut(&Progress<'_>)) -> Result<Fetched> {
    if path.exists() {
        let digest = Growing::open(path)?.digest();
        if digest == md5 {
            return Ok(Fetched::AlreadyThere);
        }
        let message =
            format!("is there, but with MD5 {digest} instead of {md5}; remove it, or fetch elsewhere");
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
                "what {url} sent has MD5 {digest} instead of {md5}, and was thrown away; try again, or another source \
                 with --from"
            );
            return Err(Error::damaged(path, message));
        }
        // What was there may have been the start of something else: once more, from the beginning.
        resumed = false;
    }
}

/// A file and the MD5 of what is in it.
struct Growing {
    path: PathBuf,
    file: File,
    bytes: u64,
    hash: md5::Context,
}

impl Growing {
    /// A file to read through and append to; made if it is not there.
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

/// Appends what is missing.
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
                "{url}: {broken}; {} bytes are kept in {}, and the same command continues from there",
                file.bytes,
                file.path.display()
            );
            return Err(Error::damaged(path, message));
        }
        std::thread::sleep(Duration::from_millis(200 << fruitless));
    }
}

/// One request. `None`: the file is complete as far as the server tells; otherwise why it broke off.
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
            file.clear()?; // the server sends everything, whatever was asked for
            length
        }
        206 => match range.as_deref().and_then(parse_range) {
            Some((start, total)) if start == file.bytes => total.or(length.map(|n| n + start)),
            _ => {
                file.clear()?;
                return Ok(Some(format!("the server sent another part than was asked for ({range:?})")));
            }
        },
        // Nothing lies behind what is there: complete, or too long, which the checksum tells.
        416 => return Ok(None),
        500..=599 | 408 | 429 => return Ok(Some(format!("the server answers with status {status}"))),
        _ => {
            let message =
                format!("{url}: the server answers with status {status}; another source: --from URL");
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
            Err(e) => return Ok(Some(format!("the connection broke off: {e}"))),
        }
        watch(&Progress { path, bytes: file.bytes, total });
    }
    match total {
        Some(total) if file.bytes < total => {
            Ok(Some(format!("the connection ended after {} of {total} bytes", file.bytes)))
        }
        _ => Ok(None),
    }
}

/// Start and total length of `bytes START-END/TOTAL`.
fn parse_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.trim().strip_prefix("bytes")?.trim().split_once('/')?;
    Some((range.split_once('-')?.0.parse().ok()?, total.parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_understood() {
        assert_eq!(parse_range("bytes 5-9/10"), Some((5, Some(10))));
        assert_eq!(parse_range("bytes 5-9/*"), Some((5, None)));
        assert_eq!(parse_range("bytes */10"), None);
        assert_eq!(parse_range("lines 1-2/3"), None);
    }
}
