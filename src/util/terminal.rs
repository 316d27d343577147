//! Layout for terminals: display width of text (Chinese, Japanese and Korean letters take two columns),
//! tables, and lines whose less important parts are dropped when they do not fit.

use console::{Alignment, Term, measure_text_width, pad_str};

/// Columns of the terminal that stdout goes to; None where it goes elsewhere.
pub fn stdout_columns() -> Option<usize> {
    columns(&Term::stdout())
}

/// The same of stderr.
pub fn stderr_columns() -> Option<usize> {
    columns(&Term::stderr())
}

fn columns(term: &Term) -> Option<usize> {
    term.size_checked().map(|(_, columns)| usize::from(columns)).filter(|columns| *columns > 0)
}

/// Columns that `text` takes.
pub fn width(text: &str) -> usize {
    measure_text_width(text)
}

/// `text` at the left of `width` columns.
pub fn padded(text: &str, width: usize) -> String {
    pad_str(text, width, Alignment::Left, None).into_owned()
}

/// A part of a line, with what separates it from the one before.
pub struct Part {
    pub text: String,
    /// Parts of the lowest rank give way first; those of [`Part::KEPT`] never do.
    pub rank: u8,
}

impl Part {
    pub const KEPT: u8 = u8::MAX;

    pub fn new(rank: u8, text: impl Into<String>) -> Self {
        Self { text: text.into(), rank }
    }
}

/// The parts that fit so many columns, in their order; all of them where there is no terminal.
pub fn line(parts: &[Part], columns: Option<usize>) -> String {
    let mut shown: Vec<&Part> = parts.iter().collect();
    let mut total: usize = parts.iter().map(|part| width(&part.text)).sum();
    while total > columns.unwrap_or(usize::MAX) {
        let lowest =
            (0..shown.len()).filter(|at| shown[*at].rank < Part::KEPT).min_by_key(|at| shown[*at].rank);
        let Some(at) = lowest else { break };
        total -= width(&shown.remove(at).text);
    }
    shown.into_iter().map(|part| part.text.as_str()).collect()
}

/// Columns from `right` on are aligned to the right.
pub fn table(head: &[&str], right: usize, rows: Vec<Vec<String>>) -> String {
    fitted(head, right, rows, None, &[])
}

/// The same in so many columns of a terminal: those of `dispensable` are left out where it is too narrow, the
/// first of them first.
pub fn fitted(
    head: &[&str],
    right: usize,
    rows: Vec<Vec<String>>,
    columns: Option<usize>,
    dispensable: &[usize],
) -> String {
    let head = head.iter().map(|cell| (*cell).to_owned()).collect();
    let lines: Vec<Vec<String>> = std::iter::once(head).chain(rows).collect();
    let count = lines.iter().map(Vec::len).max().unwrap_or(0);
    let widest =
        |column: usize| lines.iter().filter_map(|line| line.get(column)).map(|cell| width(cell)).max();
    let widths: Vec<usize> = (0..count).map(|column| widest(column).unwrap_or(0)).collect();
    let mut shown: Vec<usize> = (0..count).collect();
    for column in dispensable {
        let total: usize = shown.iter().map(|column| widths[*column] + 2).sum();
        if total.saturating_sub(2) > columns.unwrap_or(usize::MAX) {
            shown.retain(|one| one != column);
        }
    }
    let mut text = String::new();
    for line in &lines {
        let cells = shown.iter().filter_map(|&column| {
            let side = if column >= right { Alignment::Right } else { Alignment::Left };
            Some(pad_str(line.get(column)?, widths[column], side, None))
        });
        text += cells.collect::<Vec<_>>().join("  ").trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Vec<String>> {
        [["郁金香", "1", "x"], ["rose", "12", "y"]].map(|row| row.map(str::to_owned).to_vec()).to_vec()
    }

    #[test]
    fn columns_stand_below_each_other_whatever_the_script() {
        let text = table(&["class", "samples", "z"], 1, rows());
        assert_eq!(text, "class   samples  z\n郁金香        1  x\nrose         12  y\n");
        assert!(text.lines().all(|line| width(line) == 18), "{text}");
    }

    #[test]
    fn a_narrow_terminal_loses_the_columns_and_parts_that_matter_least() {
        let narrow = |columns| fitted(&["class", "samples", "z"], 1, rows(), Some(columns), &[2, 1]);
        assert!(narrow(18).contains('z'));
        assert_eq!(narrow(17), "class   samples\n郁金香        1\nrose         12\n");
        assert_eq!(narrow(10), "class\n郁金香\nrose\n");
        let parts =
            [Part::new(Part::KEPT, "epoch 1"), Part::new(1, " · ‖w‖ 3.00"), Part::new(2, " · loss 0.1")];
        assert_eq!(line(&parts, None), "epoch 1 · ‖w‖ 3.00 · loss 0.1");
        assert_eq!(line(&parts, Some(20)), "epoch 1 · loss 0.1");
        assert_eq!(line(&parts, Some(3)), "epoch 1");
    }
}
