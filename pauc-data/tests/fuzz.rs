//! Damaged files of every format cause no panic and no hang, and use no more memory than the file and the
//! limits allow.
//!
//! The damage is drawn from a fixed seed, so that every run sees the same files. `PAUC_TEST_SEED` changes the
//! seed, and `PAUC_TEST_CASES` sets the number of damaged versions of each file.
#![allow(clippy::unwrap_used)] // the whole file is a test

use pauc_data::datasets::{idx, npy, stl10, tar};
use pauc_data::decode::{Decoding, decode, dimensions};
use pauc_data::disk_cache::Store;
use pauc_testing::property;
use pauc_traits::component_ron::options;
use pauc_traits::dataset::{Dataset, Place};
use peak_alloc::PeakAlloc;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

#[global_allocator]
static MEMORY: PeakAlloc = PeakAlloc;

/// Serializes the tests. Otherwise they would measure each other's memory.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One change at a position, given as a fraction of the file.
#[derive(Clone, Debug)]
enum Damage {
    Flip(u8),
    Word(u32),
    Cut,
    Insert(Vec<u8>),
    Repeat(u16),
    Drop(u16),
}

fn damage() -> impl Strategy<Value = Vec<(f64, Damage)>> {
    let words =
        prop_oneof![Just(0), Just(1), Just(0x7fff_ffff), Just(u32::MAX), Just(0xffff_0000), any::<u32>()];
    let act = prop_oneof![
        4 => any::<u8>().prop_map(Damage::Flip),
        3 => words.prop_map(Damage::Word),
        1 => Just(Damage::Cut),
        1 => vec(any::<u8>(), 1..40).prop_map(Damage::Insert),
        1 => (1..600u16).prop_map(Damage::Repeat),
        1 => (1..600u16).prop_map(Damage::Drop),
    ];
    // Headers are short, and most parsing errors concern them.
    let place = prop_oneof![0.0..1.0, (0.0..1.0f64).prop_map(|v| v * v * v * v)];
    vec((place, act), 1..4)
}

fn damaged(whole: &[u8], acts: &[(f64, Damage)]) -> Vec<u8> {
    let mut bytes = whole.to_vec();
    for (place, act) in acts {
        let start = (place * bytes.len() as f64) as usize;
        let end = |n: &u16| (start + usize::from(*n)).min(bytes.len());
        match act {
            Damage::Flip(mask) => bytes.get_mut(start).into_iter().for_each(|b| *b ^= mask),
            Damage::Word(word) => {
                bytes.iter_mut().skip(start).zip(word.to_be_bytes()).for_each(|(b, w)| *b = w);
            }
            Damage::Cut => bytes.truncate(start),
            Damage::Insert(more) => drop(bytes.splice(start..start, more.iter().copied())),
            Damage::Repeat(n) => {
                let part = bytes[start..end(n)].to_vec();
                drop(bytes.splice(start..start, part));
            }
            Damage::Drop(n) => drop(bytes.drain(start..end(n))),
        }
    }
    bytes
}

/// Reads `cases` damaged versions of each file; `read` returns whether a file could be read.
fn fuzz(wholes: &[&[u8]], cases: u32, limit: usize, mut read: impl FnMut(&[u8]) -> bool) {
    for whole in wholes {
        assert!(read(whole), "the undamaged file is readable");
        let config = Config { failure_persistence: None, ..property::cases(cases) };
        let enough = config.cases >= 100;
        let mut refused = 0;
        let cell = std::cell::RefCell::new((&mut read, &mut refused));
        let outcome = TestRunner::new(config).run(&damage(), |acts| {
            let bytes = damaged(whole, &acts);
            let mut cell = cell.borrow_mut();
            MEMORY.reset_peak_usage();
            let before = MEMORY.current_usage();
            if !(cell.0)(&bytes) {
                *cell.1 += 1;
            }
            let peak = MEMORY.peak_usage().saturating_sub(before);
            prop_assert!(peak <= limit, "{} bytes of memory for a file of {} bytes", peak, bytes.len());
            Ok(())
        });
        if let Err(failure) = outcome {
            panic!("{failure}\n{}", property::command());
        }
        // Every format rejects at least half of the damaged files, so no rejection in a hundred cases has
        // probability 10⁻³⁰.
        assert!(refused > 0 || !enough, "some damage is detected");
    }
}

const MIB: usize = 1 << 20;

#[test]
fn pictures() {
    let _alone = alone();
    let encoded = |format| {
        let mut bytes = std::io::Cursor::new(Vec::new());
        let picture =
            image::RgbImage::from_fn(19, 13, |x, y| image::Rgb([x as u8 * 13, y as u8 * 19, (x * y) as u8]));
        image::DynamicImage::from(picture).write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    };
    use image::ImageFormat::{Bmp, Gif, Png, WebP};
    let lossless = [Png, Gif, WebP, Bmp].map(encoded);
    let mut files: Vec<&[u8]> = lossless.iter().map(Vec::as_slice).collect();
    files.push(include_bytes!("golden/halves.jpg"));
    files.push(include_bytes!("odd/progressive.jpg"));
    files.push(include_bytes!("odd/cmyk.jpg"));
    files.push(include_bytes!("odd/restarts.jpg"));
    let how = Decoding { pixel_limit: 100_000, ..Decoding::default() };
    // 16-bit RGBA pixels and the decoder's copy, the coefficients of a progressive file, and tables.
    fuzz(&files, 600, 8 * MIB, |bytes| {
        let header = dimensions(bytes, how.pixel_limit, Path::new("a"));
        let image = decode(bytes, how, Path::new("a"));
        if let (Ok(size), Ok(image)) = (&header, &image) {
            assert_eq!(*size, (image.shape.height, image.shape.width));
        }
        image.is_ok()
    });
}

#[test]
fn idx_files() {
    let _alone = alone();
    let labeled = idx::Labeled { height: 5, width: 4, pixels: vec![7; 400], labels: vec![1; 20] };
    let [images, labels] = labeled.to_bytes();
    for (bytes, part) in [(images, idx::Part::Images), (labels, idx::Part::Labels)] {
        fuzz(&[&bytes], 2000, MIB, |b| idx::read_part(&mut &*b, part, Path::new("a")).is_ok());
    }
}

#[test]
fn npy_files() {
    let _alone = alone();
    let pixels: Vec<u8> = (0..24).collect();
    let file = pauc_testing::npy::file("|u1", false, "(2, 3, 4)", &pixels);
    fuzz(&[&file], 3000, MIB, |b| npy::parse(b.to_vec(), Path::new("a")).is_ok());
}

#[test]
fn stl10_files() {
    let _alone = alone();
    let pictures = vec![9; stl10::SHAPE.len() * 2];
    fuzz(&[&pictures], 300, MIB, |b| stl10::unpack(b, &mut Vec::new(), Path::new("a")).is_ok());
    fuzz(&[&[1, 2, 10, 4]], 500, MIB, |b| stl10::labels(b, 4, Path::new("a")).is_ok());
}

fn archive() -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    let long = format!("{}/c.png", "x".repeat(130));
    for (name, bytes) in [("a/1.png", &b"12345"[..]), ("a/1.cls", b"7\n"), (&long, b"678"), ("b/2.jpg", b"")]
    {
        let mut header = ::tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        builder.append_data(&mut header, name, bytes).unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn tar_archives() {
    let _alone = alone();
    let whole = archive();
    fuzz(&[&whole], 2000, 2 * MIB, |b| {
        tar::items(b, tar::Bytes::InPlace(b.len() as u64), Path::new("a")).is_ok()
    });
    fuzz(&[&whole], 1000, 2 * MIB, |b| {
        tar::items(b, tar::Bytes::Unpacked { buffer: &mut Vec::new(), largest: MIB as u64 }, Path::new("a"))
            .is_ok()
    });
}

/// Opens a dataset with one damaged file in a folder of intact files.
fn open_with(set: &str, name: &str, files: &[(&str, &[u8])], cases: u32) {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| std::fs::write(folder.path().join(name), bytes).unwrap();
    files.iter().for_each(|(name, bytes)| write(name, bytes));
    let place = Place::at(folder.path());
    let whole = files.iter().find(|f| f.0 == name).unwrap().1;
    let set = pauc_traits::Configured::<dyn Dataset>::parse(set).unwrap();
    fuzz(&[whole], cases, 8 * MIB, |bytes| {
        write(name, bytes);
        set.open(&place).is_ok()
    });
}

#[test]
fn datasets_from_files() {
    let _alone = alone();
    let cifar: Vec<u8> = (0..3 * 3073).map(|i| if i % 3073 == 0 { 4 } else { i as u8 }).collect();
    let files = [("data_batch_1.bin", &*cifar), ("test_batch.bin", &cifar)];
    open_with("Cifar10(root: \".\")", "data_batch_1.bin", &files, 300);
    let png = include_bytes!("odd/restarts.png");
    let table = b"path,label,split\na.png,cat,train\na.png,\"dog, big\",train\na.png,cat,test\n";
    let list = [("a.png", &png[..]), ("list.csv", table)];
    open_with("FileList(list: \"list.csv\")", "list.csv", &list, 600);
    open_with("FileList(list: \"list.csv\")", "a.png", &list, 200);
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut builder = ::tar::Builder::new(&mut gz);
    let mut header = ::tar::Header::new_gnu();
    header.set_size(png.len() as u64);
    builder.append_data(&mut header, "a/1.png", &png[..]).unwrap();
    builder.finish().unwrap();
    drop(builder);
    gz.flush().unwrap();
    let gz = gz.finish().unwrap();
    open_with("Tar(root: \"a.tgz\", test_fraction: 0, unpacked_limit: 1)", "a.tgz", &[("a.tgz", &gz)], 600);
    let pixels = [5; 24];
    let view = safetensors::tensor::TensorView::new(safetensors::Dtype::U8, vec![2, 3, 4], &pixels).unwrap();
    let tensors = safetensors::serialize([("images", view)], None).unwrap();
    open_with("Safetensors(file: \"a\")", "a", &[("a", &tensors)], 600);
}

#[test]
fn a_damaged_index_of_archives_changes_nothing() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let png = include_bytes!("odd/restarts.png");
    let mut builder = ::tar::Builder::new(Vec::new());
    for name in ["a/1.png", "b/2.png"] {
        let mut header = ::tar::Header::new_gnu();
        header.set_size(png.len() as u64);
        builder.append_data(&mut header, name, &png[..]).unwrap();
    }
    std::fs::write(folder.path().join("a.tar"), builder.into_inner().unwrap()).unwrap();
    let place = Place::at(folder.path());
    let set: tar::Tar = options().from_str("Tar(root: \"a.tar\", test_fraction: 0, index: \"i\")").unwrap();
    set.open(&place).unwrap();
    let whole = std::fs::read(folder.path().join("i")).unwrap();
    fuzz(&[&whole], 400, 8 * MIB, |bytes| {
        std::fs::write(folder.path().join("i"), bytes).unwrap();
        // A wrong but valid position is detected when the image is read; anything else causes the index to be
        // rebuilt.
        drop(set.open(&place));
        std::fs::read(folder.path().join("i")).unwrap() == bytes
    });
}

#[test]
fn decoded_pictures_on_disk() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path(), 1 << 20).unwrap();
    let key = blake3::hash(b"k");
    let shape = pauc_traits::ImageShape { height: 4, width: 5, channels: 3 };
    store.put(&key, &pauc_traits::Image::new(shape, vec![3; 60]));
    let name = key.to_hex();
    let path = folder.path().join(&name[..2]).join(format!("{}.rgb", &name[2..]));
    let whole = std::fs::read(&path).unwrap();
    fuzz(&[&whole], 600, MIB, |bytes| {
        std::fs::write(&path, bytes).unwrap();
        let image = store.get(&key);
        assert!(image.is_none() || bytes == whole, "damage is never served");
        image.is_some()
    });
}
