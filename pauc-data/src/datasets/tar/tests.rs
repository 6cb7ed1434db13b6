use super::*;
use crate::datasets::idx::tests::gzip;
use pauc_traits::component_ron::options;
use pauc_traits::dataset::ImageSource;

fn picture(value: u8) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    let picture = image::RgbImage::from_pixel(3, 2, image::Rgb([value, 0, 0]));
    picture.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
    bytes.into_inner()
}

pub fn archive(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut builder = ::tar::Builder::new(Vec::new());
    for (name, bytes) in entries {
        let mut header = ::tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, &bytes[..]).unwrap();
    }
    builder.into_inner().unwrap()
}

fn open(folder: &Path, fields: &str) -> Result<Splits> {
    let set: Tar = options().from_str(&format!("Tar({fields})")).unwrap();
    set.open(&Place::at(folder))
}

fn reds(source: &dyn ImageSource) -> Vec<u8> {
    (0..source.len()).map(|i| source.image(i).unwrap().pixels[0]).collect()
}

fn web(first: u8, labels: [&str; 2]) -> Vec<u8> {
    let label = |l: &str| format!("{l}\n").into_bytes();
    archive(&[
        ("00/a.seg.png", picture(first)),
        ("00/a.cls", label(labels[0])),
        ("00/a.json", b"{}".to_vec()),
        ("00/b.cls", label(labels[1])),
        ("00/b.png", picture(first + 1)),
    ])
}

#[test]
fn shards_in_webdataset_naming_are_read_in_place() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("x-1.tar"), web(20, ["10", "2"])).unwrap();
    std::fs::write(folder.path().join("x-0.tar"), web(10, ["2", "7"])).unwrap();
    std::fs::write(folder.path().join("x-2.tar.gz"), gzip(&web(30, ["10", "7"]))).unwrap();
    std::fs::write(folder.path().join("notes.txt"), "").unwrap();
    for _ in 0..2 {
        // First without, then with the index.
        let splits = open(folder.path(), "root: \".\", test_fraction: 0").unwrap();
        assert_eq!(reds(&*splits.train), [10, 11, 20, 21, 30, 31]);
        assert_eq!(
            (splits.classes, splits.train.labels().unwrap()),
            (vec!["2".into(), "7".into(), "10".into()], &[0, 1, 2, 0, 2, 1][..])
        );
        assert!(splits.train.name(2).ends_with("x-1.tar/00/a.seg.png"), "{}", splits.train.name(2));
        assert_eq!(splits.train.path(2).unwrap(), "x-1.tar/00/a.seg.png");
        assert!(folder.path().join(".pauc-index.json").is_file());
        assert!(!splits.description.contains("index"), "{}", splits.description);
    }
}

#[test]
fn folders_in_an_archive_are_classes_and_splits() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = archive(&[
        ("set/train/dog/1.png", picture(1)),
        ("set/test/ant/2.png", picture(2)),
        ("./set/train/ant/3.PNG", picture(3)),
        ("set/train/ant/.4.png", picture(4)),
    ]);
    std::fs::write(folder.path().join("a.tgz"), gzip(&bytes)).unwrap();
    let splits = open(folder.path(), "root: \"a.tgz\"").unwrap();
    assert_eq!((reds(&*splits.train), splits.train.labels().unwrap()), (vec![1, 3], &[1, 0][..]));
    assert_eq!(reds(&*splits.test.unwrap()), [2]);
    let flat = archive(&[("1.png", picture(1)), ("train/2.png", picture(2))]);
    std::fs::write(folder.path().join("flat.tar"), flat).unwrap();
    let splits = open(folder.path(), "root: \"flat.tar\", test_fraction: 0").unwrap();
    assert_eq!((splits.train.len(), splits.train.labels()), (2, None));
    let mixed = archive(&[("1.png", picture(1)), ("a/2.png", picture(2))]);
    std::fs::write(folder.path().join("mixed.tar"), mixed).unwrap();
    let text = open(folder.path(), "root: \"mixed.tar\"").err().unwrap().to_string();
    assert!(text.contains("1 images without a label beside 1"), "{text}");
}

#[test]
fn an_archive_that_changed_is_indexed_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tar");
    let root = "root: \"a.tar\", test_fraction: 0, index: \"my.index\"";
    std::fs::write(&path, web(1, ["0", "1"])).unwrap();
    open(folder.path(), root).unwrap();
    std::fs::write(&path, archive(&[("x/q.png", picture(9))])).unwrap();
    let splits = open(folder.path(), root).unwrap();
    assert_eq!(reds(&*splits.train), [9]);
    assert!(splits.description.contains("changed archives indexed again: a.tar"), "{}", splits.description);
    // A truncated index is rebuilt.
    let complete = std::fs::read(folder.path().join("my.index")).unwrap();
    for cut in [0, 1, complete.len() / 2, complete.len() - 1] {
        std::fs::write(folder.path().join("my.index"), &complete[..cut]).unwrap();
        assert_eq!(reds(&*open(folder.path(), root).unwrap().train), [9]);
        assert_eq!(std::fs::read(folder.path().join("my.index")).unwrap(), complete);
    }
    let text = open(folder.path(), "root: \"a.tar\", index: \"none/x\"").err().unwrap().to_string();
    assert!(text.contains("index") || text.contains("none"), "{text}");
}

#[test]
fn damage_and_bombs_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tar");
    let archived = web(1, ["0", "1"]);
    std::fs::write(&path, &archived[..700]).unwrap();
    let text = open(folder.path(), "root: \"a.tar\"").err().unwrap().to_string();
    assert!(text.contains("a.tar") && (text.contains("truncated") || text.contains("tar archive")), "{text}");
    std::fs::write(folder.path().join("b.tgz"), &gzip(&archived)[..300]).unwrap();
    assert!(open(folder.path(), "root: \"b.tgz\"").is_err());
    let zeros = archive(&[("a/big.png", vec![0; 3 << 20])]);
    std::fs::write(folder.path().join("c.tgz"), gzip(&zeros)).unwrap();
    let text = open(folder.path(), "root: \"c.tgz\", unpacked_limit: 1").err().unwrap().to_string();
    assert!(text.contains("more than unpacked_limit: 1 MiB"), "{text}");
    assert!(open(folder.path(), "root: \"none\"").err().unwrap().to_string().contains("not found"));
}

/// GNU tar writes the second name of a file as a hard link, and a file that was added again as a second entry.
#[test]
fn hard_links_and_repeated_names_are_as_when_unpacked() {
    let mut builder = ::tar::Builder::new(Vec::new());
    let file = |builder: &mut ::tar::Builder<Vec<u8>>, name: &str, value| {
        let bytes = picture(value);
        let mut header = ::tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, &bytes[..]).unwrap();
    };
    file(&mut builder, "a/1.png", 1);
    file(&mut builder, "a/2.png", 2);
    let mut link = ::tar::Header::new_gnu();
    link.set_entry_type(::tar::EntryType::Link);
    link.set_size(0);
    builder.append_link(&mut link, "b/3.png", "a/1.png").unwrap();
    file(&mut builder, "a/2.png", 20);
    let bytes = builder.into_inner().unwrap();
    for (name, bytes) in [("x.tar", bytes.clone()), ("x.tar.gz", gzip(&bytes))] {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(name), bytes).unwrap();
        let splits = open(folder.path(), &format!("root: \"{name}\", test_fraction: 0")).unwrap();
        assert_eq!(reds(&*splits.train), [1, 20, 1], "{name}");
    }
}

#[test]
fn a_member_larger_than_any_image_is_not_unpacked() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = archive(&[("a/1.png", picture(1)), ("a/zeros.png", vec![0; 3 << 20])]);
    std::fs::write(folder.path().join("x.tar.gz"), gzip(&bytes)).unwrap();
    let why = open(folder.path(), "root: \"x.tar.gz\", pixel_limit: 1000").err().unwrap().to_string();
    for text in ["x.tar.gz/a/zeros.png", "has 3145728 bytes", "raise `pixel_limit`"] {
        assert!(why.contains(text), "no `{text}` in {why}");
    }
}
