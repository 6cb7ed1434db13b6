//! Decodes every file below a folder and prints time, memory, and the image size or the error.
//!
//! ```sh
//! cargo run --release -p pauc-data --example decode_folder -- FOLDER
//! ```
//! The exit code is 1 if a file took more than two seconds or 200 MB.
#![allow(clippy::unwrap_used)] // an example stops at the first error

use pauc_data::decode::{Decoding, decode};
use peak_alloc::PeakAlloc;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { collect(&path, files) } else { files.push(path) }
    }
}

fn main() -> ExitCode {
    let root = PathBuf::from(std::env::args().nth(1).expect("a folder"));
    let mut files = Vec::new();
    collect(&root, &mut files);
    files.sort();
    let (mut read, mut over) = (0, 0);
    for path in &files {
        let bytes = std::fs::read(path).unwrap();
        MEMORY.reset_peak_usage();
        let before = MEMORY.current_usage();
        let start = Instant::now();
        let outcome = decode(&bytes, Decoding::default(), Path::new(""));
        let (time, peak) = (start.elapsed(), MEMORY.peak_usage().saturating_sub(before) as f64 / 1e6);
        read += usize::from(outcome.is_ok());
        over += usize::from(time.as_secs_f64() > 2.0 || peak > 200.0);
        let text = match outcome {
            Ok(image) => image.shape.to_string(),
            Err(e) => e.to_string(),
        };
        let name = path.strip_prefix(&root).unwrap().display();
        println!("{:>8.1} ms {peak:>7.1} MB  {name}: {text}", time.as_secs_f64() * 1e3);
    }
    println!("{} files: {read} read, {} refused, {over} over the limits", files.len(), files.len() - read);
    ExitCode::from(u8::from(over > 0))
}
