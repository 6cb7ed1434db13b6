//! Creates `pauc-data/data/fashion-mini.idx.gz` from Fashion-MNIST's four official files.
//!
//! ```sh
//! cargo run --release -p pauc-data --example make_fashion_mini -- FOLDER pauc-data/data/fashion-mini.idx.gz
//! ```
//! `FOLDER` holds the files from <https://github.com/zalandoresearch/fashion-mnist> or Debian's package
//! `dataset-fashion-mnist`.

use flate2::{Compression, GzBuilder};
use pauc_data::datasets::fashion_mini::{PER_CLASS, first_of_each_class};
use pauc_data::datasets::idx;
use std::io::Write;
use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [folder, output] = arguments.as_slice() else {
        return Err("usage: make_fashion_mini FOLDER OUTPUT".into());
    };
    // The header has no name and no time, so that the same input gives the same file.
    let mut encoder = GzBuilder::new().write(std::fs::File::create(output)?, Compression::best());
    for (part, count) in ["train", "t10k"].into_iter().zip(PER_CLASS) {
        let path = |name: &str| Path::new(folder).join(format!("{part}-{name}.gz"));
        let official = idx::read_files(&path("images-idx3-ubyte"), &path("labels-idx1-ubyte"))?;
        for bytes in first_of_each_class(&official, count).to_bytes() {
            encoder.write_all(&bytes)?;
        }
    }
    encoder.finish()?.sync_all()?;
    Ok(())
}
