//! Numbers from CSV files.

use crate::sample_columns::SampleColumns;
use csv::{ReaderBuilder, StringRecord, Trim};
use pauc_traits::{Error, Result};
use std::path::Path;

/// The number of characters of a bad cell in an error. A quote that is never closed makes the rest of the
/// file one cell.
const SHOWN: usize = 40;

/// The columns that say what a sample is. They are no dimensions.
const SAMPLE_COLUMNS: [&str; 3] = ["id", "label", "name"];

/// Reads a matrix of numbers separated by commas, semicolons or tabs. A first line with anything else is a
/// header; columns that it calls `id`, `label` or `name` are left out.
///
/// # Shapes
/// N lines of D cells → (N, D), row-major, and D
///
/// # Errors
/// If a cell is not a number, lines differ in length, or there are no rows. The error names the file, line
/// and column.
pub(crate) fn matrix(path: &Path, text: &str) -> Result<(Vec<f32>, usize)> {
    let wrong = |why: String| Error::damaged(path, why);
    let mut records = Records::new(text, separator(text));
    let (mut values, mut cols) = (Vec::new(), 0);
    let mut left_out: Vec<usize> = Vec::new();
    while let Some(record) = records.next_record().map_err(|e| wrong(e.to_string()))? {
        let (line, cells) = (record.line, &record.cells);
        let dimensions = (0..cells.len()).filter(|column| !left_out.contains(column));
        let numbers: Vec<(usize, Option<f32>)> =
            dimensions.map(|column| (column, cells[column].parse().ok())).collect();
        if let Some((column, _)) = numbers.iter().find(|(_, number)| number.is_none()) {
            if record.is_first {
                left_out =
                    (0..cells.len()).filter(|column| SAMPLE_COLUMNS.contains(&&cells[*column])).collect();
                continue;
            }
            let cell = shown(&cells[*column]);
            return Err(wrong(format!("line {line}, column {}: `{cell}` is not a number", column + 1)));
        }
        if cols == 0 {
            cols = numbers.len();
        }
        if numbers.len() != cols {
            let got = numbers.len();
            return Err(wrong(format!("line {line} has {got} values; expected {cols}, as in the first row")));
        }
        values.extend(numbers.into_iter().filter_map(|(_, number)| number));
    }
    if values.is_empty() {
        return Err(wrong("has no rows of numbers".into()));
    }
    Ok((values, cols))
}

/// Reads the columns `id`, `label` and `name`, as far as the first line names them.
///
/// # Errors
/// If an id or a label is not an integer. The error names the file, line and column.
pub(crate) fn samples(path: &Path, text: &str) -> Result<SampleColumns> {
    let wrong = |why: String| Error::damaged(path, why);
    let mut records = Records::new(text, separator(text));
    let mut next = || records.next_record().map_err(|e| wrong(e.to_string()));
    let Some(header) = next()? else { return Ok(SampleColumns::default()) };
    let [id, label, name] = SAMPLE_COLUMNS.map(|name| header.cells.iter().position(|cell| cell == name));
    let (mut ids, mut labels, mut names) = (Vec::new(), Vec::new(), Vec::new());
    while let Some(record) = next()? {
        let cell = |column: usize| record.cells.get(column).unwrap_or("");
        let integer = |column: usize| {
            let (line, text) = (record.line, shown(cell(column)));
            let place = format!("line {line}, column {}", column + 1);
            cell(column).parse::<i64>().map_err(|_| wrong(format!("{place}: `{text}` is not an integer")))
        };
        ids.extend(id.map(integer).transpose()?);
        labels.extend(label.map(integer).transpose()?);
        names.extend(name.map(|column| cell(column).to_string()));
    }
    Ok(SampleColumns {
        ids: id.map(|_| ids),
        labels: label.map(|_| labels),
        names: name.map(|_| names),
        split: None,
    })
}

/// Reads integers, one per line. A first line with anything else is a header.
///
/// # Errors
/// If a line is not an integer. The error names the file and line.
pub(crate) fn labels(path: &Path, text: &str) -> Result<Vec<i64>> {
    let wrong = |why: String| Error::damaged(path, why);
    let mut records = Records::new(text, b',');
    let mut labels = Vec::new();
    while let Some(record) = records.next_record().map_err(|e| wrong(e.to_string()))? {
        let cell = record.cells.get(0).filter(|_| record.cells.len() == 1);
        match cell.and_then(|cell| cell.parse().ok()) {
            Some(label) => labels.push(label),
            None if record.is_first => {}
            None => {
                let (line, text) = (record.line, shown(record.text));
                return Err(wrong(format!("line {line}: `{text}` is not an integer")));
            }
        }
    }
    Ok(labels)
}

/// Returns the separator of a file: a tab or a semicolon if its first line has one outside quotes, otherwise
/// a comma.
fn separator(text: &str) -> u8 {
    let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or("");
    let outside_quotes: String = first.split('"').step_by(2).collect();
    [b'\t', b';'].into_iter().find(|c| outside_quotes.contains(char::from(*c))).unwrap_or(b',')
}

/// Shortens a cell for an error message.
fn shown(cell: &str) -> String {
    match cell.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &cell[..end]),
        None => cell.into(),
    }
}

/// A line that is not blank.
struct Record<'a> {
    /// The line number in the file, from 1. A quoted cell may span several lines; this is the first of them.
    line: usize,
    is_first: bool,
    text: &'a str,
    cells: StringRecord,
}

/// The nonblank lines of a file.
struct Records<'a> {
    text: &'a str,
    reader: csv::Reader<&'a [u8]>,
    /// The line number and the byte offset where the last record began.
    line: usize,
    begin: usize,
    is_first: bool,
}

impl<'a> Records<'a> {
    fn new(text: &'a str, separator: u8) -> Self {
        // Spreadsheets write a byte order mark before the text.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut options = ReaderBuilder::new();
        options.has_headers(false).flexible(true).trim(Trim::All).delimiter(separator);
        Records { text, reader: options.from_reader(text.as_bytes()), line: 1, begin: 0, is_first: true }
    }

    fn next_record(&mut self) -> csv::Result<Option<Record<'a>>> {
        let mut cells = StringRecord::new();
        loop {
            let start = self.byte();
            if !self.reader.read_record(&mut cells)? {
                return Ok(None);
            }
            let text = &self.text[start..self.byte()];
            if text.trim().is_empty() {
                continue;
            }
            // The CSV reader's own line count is too low after blank lines and with CRLF line ends.
            let begin = start + text.len() - text.trim_start().len();
            self.line += self.text[self.begin..begin].matches('\n').count();
            self.begin = begin;
            let is_first = std::mem::take(&mut self.is_first);
            return Ok(Some(Record { line: self.line, is_first, text: text.trim(), cells }));
        }
    }

    /// Returns the number of bytes read so far.
    fn byte(&self) -> usize {
        self.reader.position().byte() as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> std::result::Result<(Vec<f32>, usize), String> {
        matrix(Path::new("x.csv"), text).map_err(|e| e.to_string())
    }

    #[test]
    fn separators_quotes_and_marks_of_spreadsheets() {
        let want = Ok((vec![1.0, -2.5, 3.0, 4.0], 2));
        for text in [
            "1,-2.5\n3,4\n",
            "1;-2.5\n3;4",
            "1\t-2.5\n3\t4\n",
            "\u{feff}1,-2.5\r\n3,4\r\n",
            "\u{feff}x,y\n1,-2.5\n\n  \n3 , 4\n",
            "\"1\",\"-2.5\"\n\"3\",4\n",
            "\"a;b\",\"a\nb\"\n1,-2.5\n3,4\n",
            "\n\nx,y\n1,-2.5\n3,4",
        ] {
            assert_eq!(read(text), want, "{text:?}");
        }
        let text = "\u{feff}class\r\n\"3\"\r\n 0\t\n";
        assert_eq!(labels(Path::new("l.csv"), text).unwrap(), [3, 0]);
    }

    #[test]
    fn columns_of_samples_are_no_dimensions() {
        let text = "id,f0,name,label,f1\n7,1,\"a,b.png\",2,-2.5\n8,3,,0,4\n";
        assert_eq!(read(text), Ok((vec![1.0, -2.5, 3.0, 4.0], 2)));
        let samples = |text: &str| samples(Path::new("x.csv"), text);
        assert_eq!(
            samples(text).unwrap(),
            SampleColumns {
                ids: Some(vec![7, 8]),
                labels: Some(vec![2, 0]),
                names: Some(vec!["a,b.png".into(), String::new()]),
                split: None,
            }
        );
        assert_eq!(samples("1,2\n3,4\n").unwrap(), SampleColumns::default());
        let text = samples("f0,id\n1,2\n\n3,x\n").unwrap_err().to_string();
        assert!(text.contains("line 4, column 2: `x` is not an integer"), "{text}");
    }

    #[test]
    fn errors_name_the_line_and_the_value() {
        for (text, says) in [
            ("1,2\n3,abc\n", "line 2, column 2: `abc` is not a number"),
            ("1,2\r\n\r\n3,abc\r\n", "line 3, column 2: `abc` is not a number"),
            ("x,y\n1,2\n\n  \n3,\n", "line 5, column 2: `` is not a number"),
            ("\"a\nb\",y\n1,2\nz,4\n", "line 4, column 1: `z` is not a number"),
            ("1,2\n\"\",4\n", "line 2, column 1: `` is not a number"),
            ("1,2\n3\n", "line 2 has 1 values; expected 2, as in the first row"),
            ("1;2\n3,4;5\n", "line 2, column 1: `3,4` is not a number"),
            ("a,b\n", "has no rows of numbers"),
            ("", "has no rows of numbers"),
        ] {
            let text = read(text).unwrap_err();
            assert!(text.contains(says) && text.contains("x.csv"), "{says}: {text}");
        }
        let open = format!("1,2\n\"{}", "9,9\n".repeat(100));
        let text = read(&open).unwrap_err();
        assert!(text.contains("line 2, column 1: `9,9\n9,9") && text.contains("…`"), "{text}");
        assert!(text.chars().count() < 100, "{text}");
        for (text, says) in
            [("1\ncat\n", "line 2: `cat`"), ("1\n\n2,3\n", "line 3: `2,3`"), ("1\n\"\"\n", "line 2: `\"\"`")]
        {
            let text = labels(Path::new("l.csv"), text).unwrap_err().to_string();
            assert!(text.contains(says) && text.contains("is not an integer"), "{says}: {text}");
        }
    }
}
