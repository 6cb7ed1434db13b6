use super::super::OnError;
use super::*;
use pauc_testing::{assert_within, tolerance};
use pauc_traits::Count;
use pauc_traits::dataset::ImageSource;
use std::path::Path;

/// A PNG of one color.
fn picture(path: &Path, height: u32, width: u32, value: u8) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let picture = image::RgbImage::from_pixel(width, height, image::Rgb([value, 0, 255 - value]));
    picture.save_with_format(path, image::ImageFormat::Png).unwrap();
}

fn dataset() -> ImageFolder {
    ImageFolder {
        root: ".".into(),
        test_fraction: UnitInterval::lit(0.25),
        on_error: OnError::Fail,
        shorter_side: None,
        background: (255, 255, 255),
        cache: 1,
        disk_cache: None,
        pixel_limit: Count::lit(10_000),
    }
}

/// Without held-out test images.
fn whole() -> ImageFolder {
    ImageFolder { test_fraction: UnitInterval::lit(0.0), ..dataset() }
}

fn open(root: &Path, dataset: ImageFolder) -> Result<Splits> {
    dataset.open(&Place::at(root))
}

fn first_values(source: &dyn ImageSource) -> Vec<u8> {
    (0..source.len()).map(|i| source.image(i).unwrap().pixels[0]).collect()
}

#[test]
fn train_and_val_folders_are_the_splits() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    picture(&path("train/cat/b.PNG"), 4, 6, 2);
    picture(&path("train/cat/a.jpeg"), 4, 6, 1); // the content determines the format, not the name
    picture(&path("train/ant/deep/er/c.png"), 4, 6, 3);
    picture(&path("val/cat/d.png"), 4, 6, 4);
    std::fs::write(path("train/ant/notes.txt"), "not an image").unwrap();
    std::fs::write(path("train/cat/.hidden.png"), "not an image").unwrap();
    let splits = open(folder.path(), dataset()).unwrap();
    assert_eq!(splits.classes, ["ant", "cat"]);
    assert_eq!(first_values(&*splits.train), [3, 1, 2]);
    assert_eq!(splits.train.labels().unwrap(), [0, 1, 1]);
    let test = splits.test.unwrap();
    assert_eq!((first_values(&*test), test.labels().unwrap()), (vec![4], &[1][..]));
    assert_eq!(splits.train.shape().unwrap().width, 6);
    assert!(splits.description.ends_with("1 other files ignored"), "{}", splits.description);
    // Computed in `f64` and rounded once.
    let mean = (1.0 + 2.0 + 3.0) / 3.0 / 255.0;
    assert_within!(splits.statistics[0].0, mean, tolerance::f32(1, mean));
    assert_within!(splits.statistics[2].0, 1.0 - mean, tolerance::f32(1, 1.0 - mean));
    picture(&path("val/dog/e.png"), 4, 6, 4);
    let text = open(folder.path(), dataset()).err().unwrap().to_string();
    assert!(text.contains("dog") && text.contains("no training images"), "{text}");
}

#[test]
fn without_split_folders_a_fraction_of_each_class_is_held_out() {
    let folder = tempfile::tempdir().unwrap();
    for class in ["a", "b"] {
        (0..12)
            .for_each(|i| picture(&folder.path().join(format!("{class}/{i}.png")), 3, 3 + i / 11, i as u8));
    }
    let splits = open(folder.path(), dataset()).unwrap();
    let (train, test) = (&splits.train, splits.test.as_ref().unwrap());
    assert_eq!((train.len(), test.len()), (18, 6));
    assert_eq!(test.labels().unwrap(), [0, 0, 0, 1, 1, 1]);
    assert_eq!(train.shape(), None, "one is wider");
    let mut values = first_values(&**train);
    values.extend(first_values(&**test));
    values.sort_unstable();
    assert!(values.iter().copied().eq((0..24).map(|i| i / 2)));
    // A new file moves at most one old one.
    let before = first_values(&**test);
    picture(&folder.path().join("a/new.png"), 3, 3, 99);
    let after = first_values(&**open(folder.path(), dataset()).unwrap().test.as_ref().unwrap());
    assert!(before.iter().filter(|v| !after.contains(v)).count() <= 1, "{before:?} {after:?}");
    assert!(open(folder.path(), whole()).unwrap().test.is_none());
}

#[test]
fn a_flat_folder_has_no_labels() {
    let folder = tempfile::tempdir().unwrap();
    (0..4).for_each(|i| picture(&folder.path().join(format!("{i}.png")), 3, 3, i));
    let splits = open(folder.path(), dataset()).unwrap();
    assert_eq!((splits.train.len(), splits.train.labels(), splits.classes.len()), (3, None, 0));
    picture(&folder.path().join("more/5.png"), 3, 3, 5);
    let text = open(folder.path(), dataset()).err().unwrap().to_string();
    assert!(text.contains("4 images beside 1 folders"), "{text}");
}

#[test]
fn unreadable_images_are_an_error_or_are_skipped() {
    let folder = tempfile::tempdir().unwrap();
    (0..8).for_each(|i| picture(&folder.path().join(format!("train/a/{i}.png")), 3, 3, i));
    for name in ["3.png", "5.png"] {
        std::fs::write(folder.path().join("train/a").join(name), b"\x89PNG\r\n\x1a\n").unwrap();
    }
    let text = open(folder.path(), whole()).err().unwrap().to_string();
    assert!(text.contains("3.png: cannot be read"), "{text}");
    let skip = |n| ImageFolder { on_error: OnError::Skip { max: n }, ..whole() };
    let splits = open(folder.path(), skip(2)).unwrap();
    assert_eq!(first_values(&*splits.train), [0, 1, 2, 4, 6, 7]);
    assert_eq!(splits.train.labels().unwrap(), [0; 6]);
    assert!(splits.description.contains("2 unreadable images skipped"), "{}", splits.description);
    let paths: Vec<_> = splits.skipped.iter().map(|s| Path::new(&s.path).file_name().unwrap()).collect();
    assert_eq!(paths, ["3.png", "5.png"]);
    assert!(splits.skipped.iter().all(|s| s.reason.starts_with("cannot be read as an image")));
    let text = open(folder.path(), skip(1)).err().unwrap().to_string();
    assert!(text.contains("2 images cannot be read, more than on_error: Skip(max: 1)"), "{text}");
}

#[test]
fn large_images_are_refused_or_shrunk_and_memory_is_bounded() {
    let folder = tempfile::tempdir().unwrap();
    (0..3).for_each(|i| picture(&folder.path().join(format!("train/a/{i}.png")), 40, 80, i));
    let small = ImageFolder { pixel_limit: Count::lit(3199), ..whole() };
    let text = open(folder.path(), small).err().unwrap().to_string();
    assert!(text.contains("40×80 pixels, more than the limit of 3199"), "{text}");
    let shrunk = ImageFolder { shorter_side: Some(Count::lit(10)), ..whole() };
    let splits = open(folder.path(), shrunk).unwrap();
    assert_eq!(splits.train.shape().unwrap().to_string(), "10×20×3");
    assert_eq!(splits.train.image(1).unwrap().shape.width, 20);
    // Cached images are borrowed, the others owned. 80·40·3 bytes are 9.4 KiB each.
    let borrowed = |splits: &Splits| {
        let lent =
            |i: &usize| matches!(splits.train.image(*i).unwrap().pixels, std::borrow::Cow::Borrowed(_));
        (0..3).filter(lent).count()
    };
    assert_eq!(borrowed(&open(folder.path(), whole()).unwrap()), 3);
    assert_eq!(borrowed(&open(folder.path(), ImageFolder { cache: 0, ..whole() }).unwrap()), 0);
}

#[test]
fn errors_name_a_missing_or_empty_folder() {
    let folder = tempfile::tempdir().unwrap();
    let text = open(&folder.path().join("none"), dataset()).err().unwrap().to_string();
    assert!(text.contains("none") && text.contains("not found"), "{text}");
    let text = open(folder.path(), whole()).err().unwrap().to_string();
    assert!(text.contains("has no images"), "{text}");
}

#[test]
fn a_disk_cache_serves_decoded_images_and_detects_changes() {
    let folder = tempfile::tempdir().unwrap();
    (0..3).for_each(|i| picture(&folder.path().join(format!("train/a/{i}.png")), 4, 4, i));
    let cached = || {
        let cache = crate::disk_cache::DiskCache { folder: "cache".into(), budget: Count::lit(1) };
        ImageFolder { root: "train".into(), disk_cache: Some(cache), cache: 0, ..whole() }
    };
    assert_eq!(first_values(&*open(folder.path(), cached()).unwrap().train), [0, 1, 2]);
    let mut files = Vec::new();
    for part in std::fs::read_dir(folder.path().join("cache")).unwrap() {
        files.extend(std::fs::read_dir(part.unwrap().path()).unwrap().map(|e| e.unwrap().path()));
    }
    assert_eq!(files.len(), 3);
    // Shows that images come from the cache: changed pixels with a valid checksum are returned.
    for file in files {
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[24..].fill(9);
        let check = blake3::hash(&bytes[24..]);
        bytes[16..24].copy_from_slice(&check.as_bytes()[..8]);
        std::fs::write(&file, bytes).unwrap();
    }
    assert_eq!(first_values(&*open(folder.path(), cached()).unwrap().train), [9, 9, 9]);
    picture(&folder.path().join("train/a/1.png"), 4, 4, 77);
    assert_eq!(first_values(&*open(folder.path(), cached()).unwrap().train), [9, 77, 9]);
}

/// Opening a pipe would block until something writes to it.
#[cfg(unix)]
#[test]
fn pipes_are_named_and_not_opened() {
    let folder = tempfile::tempdir().unwrap();
    let class = folder.path().join("a");
    std::fs::create_dir(&class).unwrap();
    let made = std::process::Command::new("mkfifo").arg(class.join("x.jpg")).status().unwrap();
    assert!(made.success());
    let why = open(folder.path(), whole()).err().unwrap().to_string();
    assert!(why.contains("x.jpg") && why.contains("not a regular file"), "{why}");
}
