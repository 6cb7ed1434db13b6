//! The charts of a study as files.

use super::{Names, Study, figures, kinds};
use std::collections::BTreeMap;

/// Returns the name of a file and the SVG of each chart of the page. The name tells what the chart shows, and for which
/// metric and values. No two names are equal.
pub fn charts(study: &Study) -> Vec<(String, String)> {
    let (names, kinds) = (Names::new(study), kinds(study));
    let over = figures::over_values(study, &names, &kinds).map(|group| group.figures);
    let groups = |all: Vec<figures::Group>| all.into_iter().flat_map(|group| group.figures).collect();
    let all: [(&str, Vec<String>); 7] = [
        ("metric", figures::metrics(study, &names, &kinds)),
        ("over", over.unwrap_or_default()),
        ("difference", figures::differences(study, &names, &kinds)),
        ("map", groups(figures::maps(study, &names, &kinds))),
        ("against", figures::against(study, &names, &kinds)),
        ("curve", groups(figures::curves(study, &names))),
        ("embeddings", figures::embeddings(study, &names)),
    ];
    let mut found: BTreeMap<String, usize> = BTreeMap::new();
    let mut charts = Vec::new();
    for (kind, svg) in all.into_iter().flat_map(|(kind, svgs)| svgs.into_iter().map(move |svg| (kind, svg))) {
        let name = format!("{kind}-{}", file_name(title(&svg)));
        let count = found.entry(name.clone()).or_default();
        *count += 1;
        charts.push((if *count > 1 { format!("{name}-{count}") } else { name }, svg));
    }
    charts
}

/// Returns the title of a chart.
fn title(svg: &str) -> &str {
    let title = svg.split_once("<title>").and_then(|(_, rest)| rest.split_once("</title>"));
    title.map_or("", |(title, _)| title)
}

/// Returns a title with its letters and digits in lower case, and hyphens between them.
fn file_name(title: &str) -> String {
    let words = title.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-").to_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_are_words_of_titles() {
        let svg = "<svg class=\"plot\"><title>knn/cos/k20, k = [10, 20]</title></svg>";
        assert_eq!(file_name(title(svg)), "knn-cos-k20-k-10-20");
        assert_eq!(file_name(title("<svg></svg>")), "");
    }
}
