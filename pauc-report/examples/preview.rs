//! Writes a synthetic run with its report and figures: `cargo run -p pauc-report --example preview FOLDER`.

#[path = "../tests/synthetic/mod.rs"]
mod synthetic;

fn main() -> pauc_traits::Result<()> {
    let folder = std::env::args().nth(1).unwrap_or_else(|| "runs/preview".into());
    let folder = std::path::Path::new(&folder);
    synthetic::write(folder).map_err(|e| pauc_traits::Error::io(folder, e))?;
    println!("{}", pauc_report::write_report(folder)?.display());
    for figure in pauc_report::write_figures(folder)? {
        println!("{}", figure.display());
    }
    Ok(())
}
