//! Output that nobody reads or that cannot be written: it ends no training, and nothing panics.
#![cfg(unix)]

use crate::common::{only_run, root};
use std::fs::OpenOptions;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const RECIPE: &str = r#"Recipe(name: "console", data: Shapes(count: 64, size: 12, classes: 4),
    views: [(count: 2, ops: [RandomResizedCrop(size: 12)])], encoder: MlpEncoder(dims: [16]),
    projector: Mlp(dims: [6]), objective: [(term: InfoNce())],
    train: (epochs: 2, batch: 16, log_every: 1), probes: [Knn(k: 5)])"#;

fn program(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pauc-cli"));
    command.args(args).current_dir(root()).stdin(Stdio::null());
    command
}

/// Returns the writing end of a pipe that nobody reads.
fn nobody() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

fn full() -> Stdio {
    OpenOptions::new().write(true).open("/dev/full").unwrap().into()
}

fn recipe(folder: &Path) -> String {
    let path = folder.join("recipe.ron");
    std::fs::write(&path, RECIPE).unwrap();
    path.display().to_string()
}

#[test]
fn a_training_survives_its_console() {
    for console in [nobody as fn() -> Stdio, full] {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("runs");
        let mut run = program(&["run", &recipe(folder.path()), "--out", out.to_str().unwrap()]);
        let status = run.stdout(console()).stderr(console()).status().unwrap();
        assert_eq!(status.code(), Some(0));
        let info = std::fs::read_to_string(only_run(&out).join("run.json")).unwrap();
        assert!(info.contains("\"status\": \"finished\""), "{info}");
    }
}

#[test]
fn other_verbs_say_that_output_was_lost() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = recipe(folder.path());
    for args in [&["list"][..], &["explain", &recipe], &["check", "--json", &recipe], &["explain", "InfoNce"]]
    {
        let Output { status, stderr, .. } =
            program(args).stdout(full()).stderr(Stdio::piped()).output().unwrap();
        let stderr = String::from_utf8(stderr).unwrap();
        assert_eq!(status.code(), Some(1), "{args:?}: {stderr}");
        assert!(stderr.contains("cannot write the output: No space left"), "{args:?}: {stderr}");
        // A reader that has gone away has read what it wanted.
        let status = program(args).stdout(nobody()).stderr(Stdio::null()).status().unwrap();
        assert_eq!(status.code(), Some(0), "{args:?}");
    }
}

#[test]
fn control_characters_in_names_do_not_reach_the_terminal() {
    let folder = tempfile::tempdir().unwrap();
    let class = folder.path().join("pics/\u{1b}[31mred");
    std::fs::create_dir_all(&class).unwrap();
    std::fs::write(class.join("a\rb.png"), "no image").unwrap();
    let good = root().join("docs/src/images/quickstart-report.png");
    for i in 0..8 {
        std::fs::copy(&good, class.join(format!("{i}.png"))).unwrap();
    }
    let data = format!("ImageFolder(root: {:?})", folder.path().join("pics"));
    let Output { stdout, stderr, .. } = program(&["data", "verify", &data]).output().unwrap();
    let text = String::from_utf8(stdout).unwrap() + &String::from_utf8(stderr).unwrap();
    assert!(!text.contains(['\u{1b}', '\r']), "{text:?}");
    assert!(text.contains("\\u{1b}[31mred"), "{text}");
}
