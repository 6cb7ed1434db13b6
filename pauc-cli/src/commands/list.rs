//! `list`.

use crate::Failure;
use crate::args::JsonArg;
use clap::Args;
use pauc::traits::registry::{KINDS, Listing, catalog, did_you_mean};
use std::process::ExitCode;

/// List the components that recipes can use.
///
/// With --json, prints names, kinds, fields and defaults.
///
/// Example: pauc-cli list "contrastive loss"
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only this kind, such as `encoder` or `"contrastive loss"`.
    kind: Option<String>,
    #[command(flatten)]
    output: JsonArg,
}

impl ListArgs {
    /// Lists components by kind.
    pub fn execute(self) -> Result<ExitCode, Failure> {
        let wanted = self.kind.as_deref().map(str::to_lowercase);
        if let Some(kind) = &wanted
            && !KINDS.contains(&kind.as_str())
        {
            return Err(unknown_kind(kind));
        }
        let all: Vec<Listing> =
            catalog().into_iter().filter(|l| wanted.as_ref().is_none_or(|w| w == l.kind)).collect();
        if self.output.json {
            let rows: Vec<_> = all.iter().map(json).collect();
            outln!("{}", serde_json::Value::Array(rows));
        } else {
            print_by_kind(&all);
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn unknown_kind(kind: &str) -> Failure {
    let hint = did_you_mean(kind, KINDS.iter().copied()).map(|k| format!("; did you mean `{k}`?"));
    let (hint, kinds) = (hint.unwrap_or_default(), KINDS.join(", "));
    Failure::new(2, format!("error: unknown kind `{kind}`{hint}\nkinds: {kinds}"))
}

fn print_by_kind(all: &[Listing]) {
    let width = all.iter().map(|l| l.name.len()).max().unwrap_or(0);
    for (i, same_kind) in all.chunk_by(|a, b| a.kind == b.kind).enumerate() {
        outln!("{}{}", if i == 0 { "" } else { "\n" }, same_kind[0].kind);
        same_kind.iter().for_each(|l| outln!("  {:<width$}  {}", l.name, l.summary().trim()));
    }
}

fn json(l: &Listing) -> serde_json::Value {
    let fields: Vec<_> = l
        .fields
        .iter()
        .map(|f| {
            serde_json::json!({
                "name": f.name, "type": f.type_name(), "doc": f.doc.trim(), "default": f.default.map(|d| d()),
            })
        })
        .collect();
    serde_json::json!({
        "kind": l.kind, "name": l.name, "summary": l.summary().trim(), "crate": l.origin, "fields": fields,
    })
}
