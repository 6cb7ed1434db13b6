//! `list`.

use crate::Failure;
use crate::args::ListArgs;
use pauc::traits::registry::{KINDS, Listing, catalogue, did_you_mean};
use std::process::ExitCode;

/// Lists components by kind.
pub fn list(args: ListArgs) -> Result<ExitCode, Failure> {
    let wanted = args.kind.as_deref().map(str::to_lowercase);
    if let Some(kind) = &wanted
        && !KINDS.contains(&kind.as_str())
    {
        let hint = did_you_mean(kind, KINDS.iter().copied()).map(|k| format!("; did you mean `{k}`?"));
        let message = format!(
            "error: no kind is called `{kind}`{}\nkinds: {}",
            hint.unwrap_or_default(),
            KINDS.join(", ")
        );
        return Err(Failure::new(2, message));
    }
    let all: Vec<Listing> =
        catalogue().into_iter().filter(|l| wanted.as_ref().is_none_or(|w| w == l.kind)).collect();
    if args.json {
        let rows: Vec<_> = all.iter().map(json).collect();
        println!("{}", serde_json::Value::Array(rows));
        return Ok(ExitCode::SUCCESS);
    }
    let width = all.iter().map(|l| l.name.len()).max().unwrap_or(0);
    let mut kind = "";
    for l in &all {
        if l.kind != kind {
            kind = l.kind;
            println!("{}{kind}", if kind == all[0].kind { "" } else { "\n" });
        }
        println!("  {:<width$}  {}", l.name, l.summary().trim());
    }
    Ok(ExitCode::SUCCESS)
}

fn json(l: &Listing) -> serde_json::Value {
    let fields: Vec<_> = l
        .fields
        .iter()
        .map(|f| serde_json::json!({ "name": f.name, "type": f.type_name(), "doc": f.doc.trim(), "default": f.default.map(|d| d()) }))
        .collect();
    serde_json::json!({ "kind": l.kind, "name": l.name, "summary": l.summary().trim(), "crate": l.origin, "fields": fields })
}
