//! Downloads from a test server that simulates faults of servers and networks.
#![allow(clippy::unwrap_used)] // Clippy treats helpers of tests as library code

use pauc_data::fetch::{Fetched, RemoteFile, RemoteSet, Unpacked, download, fetch};
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex};

/// The behavior of the server.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Manner {
    /// Whole files and range requests.
    Ranges,
    /// Always the whole file.
    NoRanges,
    /// Whole files and range requests, but every connection ends after this many bytes of content.
    Breaks(usize),
    /// As `Breaks`, without range requests.
    BreaksWithoutRanges(usize),
    /// As `Breaks`, but only the first connection sends any bytes.
    Dies(usize),
    /// Wrong ranges.
    WrongPart,
    /// The status only.
    Status(u16),
}

struct Server {
    url: String,
    /// The value of `Range` of each request; empty without one.
    ranges: Arc<Mutex<Vec<String>>>,
}

impl Server {
    /// Serves `content` under every path until the test ends.
    fn new(content: Vec<u8>, manner: Manner) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/sets/", listener.local_addr().unwrap());
        let ranges = Arc::new(Mutex::new(Vec::new()));
        let recorded = ranges.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let mut range = String::new();
                for line in BufReader::new(&stream).lines() {
                    let Ok(line) = line else { break };
                    if line.is_empty() {
                        break;
                    }
                    if let Some(r) = line.to_lowercase().strip_prefix("range: ") {
                        range = r.to_string();
                    }
                }
                let before = recorded.lock().unwrap().len();
                recorded.lock().unwrap().push(range.clone());
                // The client may have closed the connection.
                let _ = stream.write_all(&answer(&content, manner, &range, before));
            }
        });
        Server { url, ranges }
    }

    fn requests(&self) -> Vec<String> {
        self.ranges.lock().unwrap().clone()
    }
}

fn answer(content: &[u8], manner: Manner, range: &str, before: usize) -> Vec<u8> {
    let head = |status: &str, more: &str, len: usize| {
        format!("HTTP/1.1 {status}\r\nConnection: close\r\n{more}Content-Length: {len}\r\n\r\n").into_bytes()
    };
    if let Manner::Status(status) = manner {
        return head(&format!("{status} No"), "", 0);
    }
    let parts = !matches!(manner, Manner::NoRanges | Manner::BreaksWithoutRanges(_));
    let mut start = range.strip_prefix("bytes=").and_then(|r| r.strip_suffix('-')?.parse::<usize>().ok());
    start = start.filter(|_| parts);
    if start.is_some_and(|f| f >= content.len()) {
        return head("416 Range", &format!("Content-Range: bytes */{}\r\n", content.len()), 0);
    }
    if manner == Manner::WrongPart {
        start = start.map(|f| f - 1);
    }
    let body = &content[start.unwrap_or(0)..];
    let mut out = match start {
        Some(f) => {
            let range = format!("Content-Range: bytes {f}-{}/{}\r\n", content.len() - 1, content.len());
            head("206 Partial Content", &range, body.len())
        }
        None => head("200 OK", "", body.len()),
    };
    let sent = match manner {
        Manner::Breaks(n) | Manner::BreaksWithoutRanges(n) => n,
        Manner::Dies(n) => {
            if before == 0 {
                n
            } else {
                0
            }
        }
        _ => body.len(),
    };
    out.extend(&body[..sent.min(body.len())]);
    out
}

fn content() -> Vec<u8> {
    (0..100_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

fn md5(bytes: &[u8]) -> String {
    format!("{:x}", md5::compute(bytes))
}

fn get(server: &Server, path: &Path, sum: &str) -> pauc_traits::Result<Fetched> {
    download(&format!("{}a.bin", server.url), path, sum, &mut |_| {})
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn the_checksum_is_md5() {
    // RFC 1321, A.5.
    assert_eq!(md5(b"message digest"), "f96b697d7cb7938d525a2f31aaf161d0");
}

#[test]
fn a_whole_file_arrives_once() {
    let (folder, content) = (tempfile::tempdir().unwrap(), content());
    let path = folder.path().join("a.bin");
    let server = Server::new(content.clone(), Manner::Ranges);
    let mut last = None;
    let url = format!("{}a.bin", server.url);
    let done = download(&url, &path, &md5(&content), &mut |p| last = Some((p.bytes, p.total))).unwrap();
    assert_eq!((done, last), (Fetched::Now, Some((100_000, Some(100_000)))));
    assert_eq!(std::fs::read(&path).unwrap(), content);
    assert_eq!(get(&server, &path, &md5(&content)).unwrap(), Fetched::AlreadyThere);
    assert_eq!((server.requests(), names(folder.path())), (vec![String::new()], vec!["a.bin".to_string()]));
    // A file with other content is neither accepted nor overwritten.
    std::fs::write(&path, b"mine").unwrap();
    let text = get(&server, &path, &md5(&content)).unwrap_err().to_string();
    assert!(text.contains("remove it") && std::fs::read(&path).unwrap() == b"mine", "{text}");
}

#[test]
fn partial_downloads_are_resumed() {
    let (folder, content) = (tempfile::tempdir().unwrap(), content());
    let path = folder.path().join("a.bin");
    std::fs::write(folder.path().join("a.bin.part"), &content[..30_000]).unwrap();
    let server = Server::new(content.clone(), Manner::Ranges);
    assert_eq!(get(&server, &path, &md5(&content)).unwrap(), Fetched::Now);
    assert_eq!(server.requests(), ["bytes=30000-"]);
    assert_eq!(std::fs::read(&path).unwrap(), content);
    // The partial file is complete; only the final name is missing.
    std::fs::rename(&path, folder.path().join("a.bin.part")).unwrap();
    assert_eq!(get(&server, &path, &md5(&content)).unwrap(), Fetched::Now);
    assert_eq!(server.requests()[1..], ["bytes=100000-"]);
    assert_eq!(names(folder.path()), ["a.bin"]);
}

#[test]
fn a_partial_file_of_something_else_is_discarded() {
    let (folder, content) = (tempfile::tempdir().unwrap(), content());
    let path = folder.path().join("a.bin");
    std::fs::write(folder.path().join("a.bin.part"), vec![7; 500]).unwrap();
    let server = Server::new(content.clone(), Manner::Ranges);
    assert_eq!(get(&server, &path, &md5(&content)).unwrap(), Fetched::Now);
    assert_eq!(server.requests(), ["bytes=500-", ""]);
    assert_eq!(std::fs::read(&path).unwrap(), content);
}

#[test]
fn a_wrong_checksum_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::new(content(), Manner::Ranges);
    let text = get(&server, &folder.path().join("a.bin"), &md5(b"else")).unwrap_err().to_string();
    assert!(text.contains(&md5(&content())) && text.contains("--from"), "{text}");
    assert!(names(folder.path()).is_empty());
}

#[test]
fn broken_connections_are_reopened() {
    let (folder, content) = (tempfile::tempdir().unwrap(), content());
    let path = folder.path().join("a.bin");
    let server = Server::new(content.clone(), Manner::Breaks(40_000));
    assert_eq!(get(&server, &path, &md5(&content)).unwrap(), Fetched::Now);
    assert_eq!(server.requests(), ["", "bytes=40000-", "bytes=80000-"]);
    assert_eq!(std::fs::read(&path).unwrap(), content);
}

#[test]
fn an_interrupted_download_is_never_taken_for_complete() {
    let (folder, content) = (tempfile::tempdir().unwrap(), content());
    let path = folder.path().join("a.bin");
    let server = Server::new(content.clone(), Manner::Dies(40_000));
    let text = get(&server, &path, &md5(&content)).unwrap_err().to_string();
    assert!(text.contains("40000 bytes are saved"), "{text}");
    assert_eq!(names(folder.path()), ["a.bin.part"]);
    // Another server sends the rest.
    let server = Server::new(content.clone(), Manner::Ranges);
    assert_eq!(get(&server, &path, &md5(&content)).unwrap(), Fetched::Now);
    assert_eq!(server.requests(), ["bytes=40000-"]);
    assert_eq!(std::fs::read(&path).unwrap(), content);
}

#[test]
fn downloads_without_range_requests_start_over() {
    let (folder, content) = (tempfile::tempdir().unwrap(), content());
    let path = folder.path().join("a.bin");
    std::fs::write(folder.path().join("a.bin.part"), &content[..30_000]).unwrap();
    let server = Server::new(content.clone(), Manner::NoRanges);
    assert_eq!(get(&server, &path, &md5(&content)).unwrap(), Fetched::Now);
    assert_eq!(std::fs::read(&path).unwrap(), content);
    std::fs::remove_file(&path).unwrap();
    // The download fails if the connection also breaks at the same byte every time.
    let server = Server::new(content.clone(), Manner::BreaksWithoutRanges(50_000));
    assert!(get(&server, &path, &md5(&content)).is_err() && !path.exists());
    assert!(server.requests().len() < 6);
    let server = Server::new(content.clone(), Manner::WrongPart);
    assert_eq!(get(&server, &path, &md5(&content)).unwrap(), Fetched::Now, "starts over");
}

#[test]
fn refusals_name_the_address() {
    let folder = tempfile::tempdir().unwrap();
    for status in [404, 503] {
        let server = Server::new(Vec::new(), Manner::Status(status));
        let text = get(&server, &folder.path().join("a"), &md5(b"")).unwrap_err().to_string();
        assert!(text.contains(&status.to_string()) && text.contains(&server.url), "{text}");
        assert!(!folder.path().join("a").exists());
        assert_eq!(server.requests().len(), if status == 404 { 1 } else { 3 });
    }
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{nobody}/a");
    assert!(download(&url, &folder.path().join("a"), &md5(b""), &mut |_| {}).is_err());
}

/// Makes a gzipped tar of files.
fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast()));
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        tar.append(&header, *bytes).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap()
}

#[test]
fn archives_are_unpacked_completely_or_not_at_all() {
    let set = |bytes: &[u8]| RemoteSet {
        name: "Tiny".into(),
        source: "http://nowhere.invalid/".into(),
        files: vec![RemoteFile { name: "tiny.tar.gz".into(), md5: md5(bytes) }],
        unpacked: Some(Unpacked { folder: "tiny".into(), members: vec![("a.bin".into(), 5)] }),
    };
    let go = |bytes: &[u8], root: &Path| {
        let server = Server::new(bytes.to_vec(), Manner::Ranges);
        let done = fetch(&set(bytes), root, Some(&server.url), &mut |_| {});
        (done, server.requests().len())
    };
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("in/it");
    let complete = archive(&[("tiny/a.bin", b"12345"), ("tiny/notes", b"n"), ("tiny/../../escaped", b"x")]);
    // A half-unpacked folder of an interrupted attempt is replaced.
    std::fs::create_dir_all(root.join(".tiny.part")).unwrap();
    let (done, requests) = go(&complete, &root);
    assert_eq!((done.unwrap(), requests), (Fetched::Now, 1));
    assert_eq!(
        (names(&root), names(&root.join("tiny"))),
        (vec!["tiny".into()], vec!["a.bin".into(), "notes".into()])
    );
    assert!(!folder.path().join("in/escaped").exists() && !folder.path().join("escaped").exists());
    let (done, requests) = go(&complete, &root);
    assert_eq!((done.unwrap(), requests), (Fetched::AlreadyThere, 0));
    // If a member is too short, neither the existing folder nor the new archive is accepted.
    std::fs::write(root.join("tiny/a.bin"), b"123").unwrap();
    let text = go(&complete, &root).0.unwrap_err().to_string();
    assert!(text.contains("not complete"), "{text}");
    let short = archive(&[("tiny/a.bin", b"1234")]);
    let other = folder.path().join("other");
    let text = go(&short, &other).0.unwrap_err().to_string();
    assert!(text.contains("a.bin has 4 bytes; expected 5 bytes") && !other.join("tiny").exists(), "{text}");
    let cut = &complete[..complete.len() / 2];
    let third = folder.path().join("third");
    assert!(go(cut, &third).0.is_err() && !third.join("tiny").exists());
}
