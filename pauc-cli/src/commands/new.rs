//! `new`.

use crate::Failure;
use crate::args::{New, NewTermArgs};
use pauc::traits::component_ron::{OpenSet, Term};
use std::io::Write;
use std::process::ExitCode;

/// A whole term with its tests; a test of pauc-losses compiles and runs it.
const TERM: &str = include_str!("../../templates/term.rs");
/// What stands for the term's name in it.
const NAME: &str = "TermSkeleton";

/// Writes a skeleton.
pub fn new(what: New) -> Result<ExitCode, Failure> {
    match what {
        New::Term(args) => term(args),
    }
}

fn term(args: NewTermArgs) -> Result<ExitCode, Failure> {
    let name = &args.name;
    let camel =
        name.starts_with(|c: char| c.is_ascii_uppercase()) && name.chars().all(|c| c.is_ascii_alphanumeric());
    if !camel {
        let message = format!("error: {name:?} is no name of a term: write it in CamelCase, as in `InfoNce`");
        return Err(Failure::new(2, message));
    }
    if Term::names().contains(&name.as_str()) {
        return Err(Failure::new(2, format!("error: there is a term `{name}` already: choose another name")));
    }
    let module = snake(name);
    let path = args.out.join(format!("{module}.rs"));
    let failed = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::AlreadyExists => Failure::new(
            2,
            format!("error: {} exists already: remove it, or choose another name", path.display()),
        ),
        _ => Failure::new(1, format!("error: cannot write {}: {e}", path.display())),
    };
    let file = std::fs::OpenOptions::new().write(true).create_new(true).open(&path);
    file.and_then(|mut f| f.write_all(TERM.replace(NAME, name).as_bytes())).map_err(&failed)?;
    println!("wrote {}", path.display());
    println!(
        "add `mod {module};` beside it, then `pauc-cli explain {name}` of a binary that links the crate shows it"
    );
    Ok(ExitCode::SUCCESS)
}

/// `MyLoss` as a module's name.
fn snake(name: &str) -> String {
    let mut out = String::new();
    for (i, c) in name.chars().enumerate() {
        if i > 0 && c.is_ascii_uppercase() {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_become_modules() {
        assert_eq!(["InfoNce", "Dcl", "MyLoss2"].map(snake), ["info_nce", "dcl", "my_loss2"]);
        assert!(TERM.contains(&format!("pub struct {NAME}: ContrastiveLoss")));
    }
}
