//! Damaged data through `data verify`: each file is read, or refused by its name with exit code 4, in little memory.

use crate::common::Output;
use crate::targets::{data as seeds, tests::damage};
use crate::{count, limited};
use pauc_testing::{npy, property, random::Random};
use std::path::Path;
use std::process::Command;

/// The address space of a process. Intact files need less than a quarter of it.
const KIBIBYTES: usize = 2 << 20;

/// Runs `data verify` in a folder, with limited memory.
fn verify(folder: &Path, set: &str) -> Output {
    let mut command = limited(KIBIBYTES);
    let command = command.args(["data", "verify", set]).current_dir(folder).env("NO_COLOR", "1");
    let out = command.output().unwrap();
    let text = |b: Vec<u8>| String::from_utf8_lossy(&b).into_owned();
    Output { code: out.status.code().unwrap_or(-1), stdout: text(out.stdout), stderr: text(out.stderr) }
}

/// A dataset of files in one folder.
struct Case {
    /// The component.
    set: &'static str,
    /// Its files. The first is the one to damage.
    files: Vec<(&'static str, Vec<u8>)>,
    /// Contents of the first file that have to be refused, and what they are.
    lies: Vec<(&'static str, Vec<u8>)>,
}

impl Case {
    /// Writes the files into a new folder, the first of them with this content.
    fn folder(&self, first: &[u8]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (i, (name, bytes)) in self.files.iter().enumerate() {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, if i == 0 { first } else { bytes }).unwrap();
        }
        folder
    }

    /// Verifies the files with this content of the first. Returns what is wrong with the answer.
    fn wrong(&self, what: &str, first: &[u8], codes: &[i32]) -> Option<String> {
        let name = self.files[0].0;
        let out = verify(self.folder(first).path(), self.set);
        let said = format!("{}{}", out.stdout, out.stderr);
        let is_named = out.code == 0 || said.contains(name);
        if codes.contains(&out.code) && !said.contains("panicked") && is_named {
            return None;
        }
        Some(format!("{name}, {what}: exit code {}: {said}", out.code))
    }
}

fn words(words: &[u32], rest: &[u8]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_be_bytes()).chain(rest.iter().copied()).collect()
}

fn idx() -> Case {
    let [images, labels] = seeds::idx_files().try_into().unwrap();
    let files = vec![
        ("train-images-idx3-ubyte", images.clone()),
        ("train-labels-idx1-ubyte", labels.clone()),
        ("t10k-images-idx3-ubyte", images.clone()),
        ("t10k-labels-idx1-ubyte", labels.clone()),
    ];
    let lies = vec![
        ("empty", vec![]),
        ("half a header", images[..7].to_vec()),
        ("labels", labels),
        ("2^32 - 1 images", words(&[0x803, u32::MAX, 28, 28], &[0; 99])),
        ("2^96 pixels", words(&[0x803, u32::MAX, u32::MAX, u32::MAX], &[0; 99])),
        ("images without pixels", words(&[0x803, 4, 0, 2], &[])),
        ("more images than labels", words(&[0x803, 5, 1, 1], &[0; 5])),
        ("a byte too many", [&images[..], &[0]].concat()),
    ];
    Case { set: "Mnist(root: \".\")", files, lies }
}

fn cifar() -> Case {
    let record = seeds::records()[0].clone();
    let batch = |i: usize| -> &'static str {
        ["data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"]
            [i]
    };
    let mut files: Vec<_> = (0..5).map(|i| (batch(i), record.clone())).collect();
    files.push(("test_batch.bin", record.clone()));
    let lies = vec![
        ("empty", vec![]),
        ("truncated", record[..3072].to_vec()),
        ("label 10", [&[10], &record[1..]].concat()),
        ("records of CIFAR-100", seeds::records()[1].clone()),
    ];
    Case { set: "Cifar10(root: \".\")", files, lies }
}

fn arrays() -> Case {
    let array = |descr, shape| npy::file(descr, false, shape, &[7; 8]);
    let intact = array("|u1", "(2, 2, 2)");
    let lies = vec![
        ("empty", vec![]),
        ("no array", b"\x93NUMPX\x01\0".to_vec()),
        ("a version of the future", [&b"\x93NUMPY\x09\0"[..], &intact[8..]].concat()),
        ("a header longer than the file", [&intact[..8], &[0xff, 0xff], &intact[10..]].concat()),
        ("2^62 images", array("|u1", "(4611686018427387904, 2, 2)")),
        ("2^64 pixels", array("|u1", "(4294967296, 4294967296, 1)")),
        ("a negative axis", array("|u1", "(-2, 2, 2)")),
        ("no images", npy::file("|u1", false, "(0, 2, 2)", &[])),
        ("objects", array("|O", "(1,)")),
        ("floats", array("<f4", "(2,)")),
        ("Fortran order", npy::file("|u1", true, "(2, 2, 2)", &[7; 8])),
        ("truncated", intact[..intact.len() - 1].to_vec()),
    ];
    Case { set: "Npy(images: \"a.npy\")", files: vec![("a.npy", intact)], lies }
}

fn tensors() -> Case {
    let file = |header: &str| [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[5; 8]].concat();
    let tensor = |dtype: &str, shape: &str, end: &str| {
        file(&format!(r#"{{"images":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{end}]}}}}"#))
    };
    let lies = vec![
        ("empty", vec![]),
        ("a header of 2^64 - 1 bytes", [&u64::MAX.to_le_bytes()[..], b"{}"].concat()),
        ("a header of 100 MB", [&100_000_000u64.to_le_bytes()[..], b"{}"].concat()),
        ("no tensor of images", file("{}")),
        ("2^62 images", tensor("U8", "[4611686018427387904,2,2]", "8")),
        ("an end after the file", tensor("U8", "[2,2,4]", "16")),
        ("an end of 2^64 - 1", tensor("U8", "[2,2,2]", "18446744073709551615")),
        ("floats", tensor("F32", "[1,1,2]", "8")),
        ("one axis", tensor("U8", "[8]", "8")),
        ("deep nesting", file(&"[".repeat(50_000))),
    ];
    let files = vec![("a.safetensors", seeds::tensor_files()[0].clone())];
    Case { set: "Safetensors(file: \"a.safetensors\")", files, lies }
}

/// Returns an archive whose first header has this size, in octal.
fn sized(size: &str) -> Vec<u8> {
    let mut bytes = seeds::archives()[0].clone();
    bytes[124..135].copy_from_slice(size.as_bytes());
    bytes[148..156].fill(b' ');
    let sum: u32 = bytes[..512].iter().map(|b| u32::from(*b)).sum();
    bytes[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    bytes
}

fn archives() -> Case {
    let intact = seeds::archives()[0].clone();
    let lies = vec![
        ("empty", vec![]),
        ("truncated", intact[..520].to_vec()),
        ("a wrong checksum", [&b"b"[..], &intact[1..]].concat()),
        ("an image of 8 GiB", sized("77777777777")),
        ("an image without bytes", sized("00000000000")),
        ("a size that is no number", sized("9999999999x")),
        ("an image beyond the end", sized("00000010000")),
    ];
    Case { set: "Tar(root: \"a.tar\", test_fraction: 0)", files: vec![("a.tar", intact)], lies }
}

fn tables() -> Case {
    let bmp = seeds::pictures().pop().unwrap();
    let lies = vec![
        ("empty", vec![]),
        ("no column of paths", b"label,split\nx,train\n".to_vec()),
        ("a missing image", b"path,label\nnone.bmp,x\n".to_vec()),
        ("a short row", b"path,label\na.bmp\n".to_vec()),
        ("bytes that are not text", b"path,label\n\xff\xfe,x\n".to_vec()),
        ("a row of 10 MB", [b"path,label\n", &vec![b'x'; 10_000_000][..]].concat()),
    ];
    let files = vec![("list.csv", b"path,label\na.bmp,x\na.bmp,y\n".to_vec()), ("a.bmp", bmp)];
    Case { set: "FileList(list: \"list.csv\", test_fraction: 0)", files, lies }
}

fn pictures() -> Case {
    let bmp = seeds::pictures().pop().unwrap();
    let large = |width: u32, height: u32| {
        let mut lie = bmp.clone();
        lie[18..22].copy_from_slice(&width.to_le_bytes());
        lie[22..26].copy_from_slice(&height.to_le_bytes());
        lie
    };
    let lies = vec![
        ("empty", vec![]),
        ("truncated", bmp[..56].to_vec()),
        ("text", b"GIF89 is a format".to_vec()),
        ("2^31 - 1 columns", large(i32::MAX as u32, 1)),
        ("2^62 pixels", large(i32::MAX as u32, i32::MAX as u32)),
        ("no columns", large(0, 1)),
    ];
    let files = vec![("a/1.bmp", bmp.clone()), ("b/2.bmp", bmp)];
    Case { set: "ImageFolder(root: \".\", test_fraction: 0)", files, lies }
}

fn cases() -> [Case; 7] {
    [idx(), cifar(), arrays(), tensors(), archives(), tables(), pictures()]
}

#[test]
fn files_that_lie_are_refused_by_name() {
    let mut wrong = Vec::new();
    for case in cases() {
        let intact = &case.files[0].1;
        let out = verify(case.folder(intact).path(), case.set);
        assert_eq!(out.code, 0, "{}: {}{}", case.set, out.stdout, out.stderr);
        wrong.extend(case.lies.iter().filter_map(|(what, bytes)| case.wrong(what, bytes, &[4])));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn damaged_files_are_read_or_refused_by_name() {
    let mut wrong = Vec::new();
    for (kind, case) in cases().iter().enumerate() {
        for number in 0..count(12) {
            let mut random = Random::new(property::seed(), (number * cases().len() + kind) as u64);
            let mut bytes = case.files[0].1.clone();
            damage(&mut bytes, &mut random);
            wrong.extend(case.wrong(&format!("damage {number}"), &bytes, &[0, 4]));
        }
    }
    assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), property::command());
}

/// A reader of a pipe waits until somebody writes. Sockets, links to nothing and folders cannot be read at all.
#[cfg(unix)]
#[test]
fn files_that_are_no_files_are_named_and_not_opened() {
    let case = pictures();
    let folder = case.folder(&case.files[0].1);
    let path = |name: &str| folder.path().join("a").join(name);
    assert!(Command::new("mkfifo").arg(path("pipe.bmp")).status().unwrap().success());
    let _socket = std::os::unix::net::UnixListener::bind(path("socket.bmp")).unwrap();
    std::os::unix::fs::symlink("nothing", path("link.bmp")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", path("zero.bmp")).unwrap();
    let out = verify(folder.path(), case.set);
    assert_eq!(out.code, 4, "{}{}", out.stdout, out.stderr);
    for name in ["pipe.bmp", "socket.bmp", "link.bmp", "zero.bmp"] {
        assert!(out.stdout.contains(name), "no {name}: {}{}", out.stdout, out.stderr);
    }
}

/// A name is what an archive or a folder says, and a terminal obeys what it prints.
#[cfg(unix)]
#[test]
fn control_sequences_in_names_do_not_reach_the_terminal() {
    let case = pictures();
    let folder = case.folder(&case.files[0].1);
    for name in
        ["\x1b[31mred.bmp", "\rback.bmp", "bell\x07.bmp", "größe.bmp", "\u{9b}31m.bmp", "two\nlines.bmp"]
    {
        std::fs::write(folder.path().join("a").join(name), "no image").unwrap();
    }
    let out = verify(folder.path(), case.set);
    let said = format!("{}{}", out.stdout, out.stderr);
    assert_eq!(out.code, 4, "{said}");
    let control = said.chars().find(|c| c.is_control() && *c != '\n');
    assert_eq!(control, None, "{said:?}");
    assert!(said.contains("größe.bmp") && said.contains("red.bmp"), "{said}");
}

#[cfg(unix)]
#[test]
fn files_without_permission_are_named() {
    use std::os::unix::fs::PermissionsExt;
    for case in cases() {
        let folder = case.folder(&case.files[0].1);
        let path = folder.path().join(case.files[0].0);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000)).unwrap();
        if std::fs::File::open(&path).is_ok() {
            return; // root may read everything
        }
        let out = verify(folder.path(), case.set);
        let said = format!("{}{}", out.stdout, out.stderr);
        assert!(out.code == 4 && said.contains(case.files[0].0), "{}: {}: {said}", case.set, out.code);
    }
}
