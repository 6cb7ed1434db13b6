//! `man`.

use crate::args::heading;
use crate::{Failure, args};
use clap::{Args, Command};
use clap_mangen::Man;
use pauc::traits::{Error, atomic};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Print a manual page, or write all of them to a folder.
///
/// `man` finds the pages in ~/.local/share/man/man1.
///
/// Examples: pauc-cli man run > pauc-cli-run.1; pauc-cli man --out man1
#[derive(Debug, Args)]
pub struct ManArgs {
    /// The verb, such as `run` or `data fetch`; without one, the page of the program.
    #[arg(conflicts_with = "out")]
    verb: Vec<String>,
    /// Write the pages of the program and of all verbs to this folder.
    #[arg(id = "out", long, value_name = "DIR", help_heading = heading::OUTPUT)]
    out: Option<PathBuf>,
}

impl ManArgs {
    /// Prints or writes manual pages.
    pub fn execute(self) -> Result<ExitCode, Failure> {
        let program = program();
        match self.out {
            Some(folder) => write_all(&program, &folder)?,
            None => out!("{}", String::from_utf8_lossy(&page(find(&program, &self.verb)?)?)),
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Returns the whole command line, with the names of all pages.
fn program() -> Command {
    let mut program = args::definition().disable_help_subcommand(true);
    program.build();
    program
}

fn find<'a>(program: &'a Command, verb: &[String]) -> Result<&'a Command, Failure> {
    verb.iter().try_fold(program, |command, word| {
        command.find_subcommand(word).ok_or_else(|| {
            let known: Vec<&str> = command.get_subcommands().map(Command::get_name).collect();
            let known = if known.is_empty() { "none".into() } else { known.join(", ") };
            let command = command.get_bin_name().unwrap_or("pauc-cli");
            Failure::new(2, format!("error: `{command}` has no verb `{word}`; known: {known}"))
        })
    })
}

/// Describes a page.
fn manual(command: &Command) -> Man {
    Man::new(command.clone()).source(concat!("pauc ", env!("CARGO_PKG_VERSION")))
}

/// Returns a page in the language of `man`.
fn page(command: &Command) -> Result<Vec<u8>, Failure> {
    let mut page = Vec::new();
    manual(command).render(&mut page).map_err(|e| Failure::new(1, format!("error: {e}")))?;
    Ok(page)
}

/// Writes the pages of a command and of its verbs.
fn write_all(command: &Command, folder: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(folder).map_err(|e| Failure::of_writing(Error::io(folder, e)))?;
    let path = folder.join(manual(command).get_filename());
    atomic::write(&path, &page(command)?).map_err(Failure::of_writing)?;
    outln!("{}", path.display());
    command.get_subcommands().try_for_each(|verb| write_all(verb, folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(verb: &[&str]) -> String {
        let words: Vec<String> = verb.iter().map(|v| v.to_string()).collect();
        let program = program();
        String::from_utf8(page(find(&program, &words).unwrap()).unwrap()).unwrap()
    }

    #[test]
    fn a_page_has_the_name_the_usage_and_every_option() {
        let page = text(&["run"]);
        assert!(page.contains(".TH pauc-cli-run 1"), "{page}");
        for part in ["Train recipes", "\\-\\-max\\-steps", "\\-\\-threads", "SYNOPSIS", "Example"] {
            assert!(page.contains(part), "no {part} in {page}");
        }
        assert!(text(&[]).contains("pauc\\-cli\\-sweep(1)"), "{}", text(&[]));
    }

    #[test]
    fn unknown_verbs_are_refused_with_those_that_exist() {
        let failure = find(&program(), &["data".into(), "fly".into()]).unwrap_err();
        assert_eq!(failure.code, 2);
        assert!(
            failure.message.contains("`pauc-cli data` has no verb `fly`; known: "),
            "{}",
            failure.message
        );
    }

    #[test]
    fn every_verb_gets_a_file() {
        let folder = tempfile::tempdir().unwrap();
        write_all(&program(), folder.path()).unwrap();
        let mut verbs = 0;
        let mut expected = vec![program()];
        while let Some(command) = expected.pop() {
            let name = command.get_display_name().unwrap_or(command.get_name()).to_string();
            let content = std::fs::read_to_string(folder.path().join(format!("{name}.1"))).unwrap();
            assert!(content.len() > 300, "{name}: {content}");
            verbs += 1;
            expected.extend(command.get_subcommands().cloned());
        }
        assert_eq!(verbs, std::fs::read_dir(folder.path()).unwrap().count());
        assert!(folder.path().join("pauc-cli-data-preview.1").exists());
    }
}
