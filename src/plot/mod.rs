//! Figures as SVG: curves, a mean with its error, heat maps. Shapes carry classes and no colours: a page
//! paints them with its own, [`standalone`] with those of white paper.

mod frame;
mod heat;
mod lines;
mod means;
pub mod png;
mod scale;

use std::fmt::Write;

pub use frame::Frame;
pub use heat::{Cell, Heat, Ramp};
pub use lines::{DIRECT, Drawn, Lines, MOST_DIRECT, Series};
pub use means::{Mean, Means};
pub use scale::{Kind, Scale, digits, number, spans_decades};

/// Of every figure but heat maps, which are as high as they have rows.
pub const WIDTH: f64 = 380.0;
pub const HEIGHT: f64 = 236.0;

/// Eight colours that remain apart for every kind of colour blindness (Okabe and Ito 2008), the yellow
/// darkened for white paper. Their classes are `c0` to `c7`.
pub const COLORS: [&str; 8] =
    ["#0072b2", "#d55e00", "#009e73", "#b5568c", "#b98300", "#3a9bd6", "#5b5b5b", "#7a4ea0"];

/// Eight steps from little to much, for what has an order; `s0` to `s7`.
pub const STEPS: [&str; 8] =
    ["#46327e", "#3f4889", "#31688e", "#26828e", "#1f9d89", "#35b779", "#74c04a", "#b0a800"];

/// The class of series `index` of `count`: by its place in an order where there is one, else a colour of its
/// own.
pub fn class(index: usize, count: usize, ordered: bool) -> String {
    match ordered {
        true => format!("s{}", (index * 7 + (count.max(2) - 1) / 2) / (count.max(2) - 1)),
        false => format!("c{}", index % 8),
    }
}

/// Around a figure on paper.
const MARGIN: f64 = 10.0;

/// The figure as a document of its own.
pub fn standalone(svg: &str) -> String {
    let mut style = String::from(
        "svg{background:#fff}text{fill:#5b6068;font-size:11.5px}.t{fill:#1c1e22;font-size:12.5px;font-weight:bold}\
         .g{stroke:#e4e6ea}.base{stroke:#9aa0a8}.l{fill:none;stroke-width:1.75;stroke-linejoin:round}.faint{opacity:.28;stroke-width:1}\
         .dash{stroke-dasharray:5 3}.dot{stroke:none}.ring{fill:none;stroke:#1c1e22;stroke-width:2.2}.rule{stroke:#9aa0a8;stroke-dasharray:3 3}\
         .m{stroke:#0072b2}.mf{fill:#0072b2}.best{fill:#d55e00}.simple{fill:#009e73}.none{fill:#d5d8dd}.share{fill:#0072b2}\
         .dark{fill:#15171a}.light{fill:#fff}.ink{fill:#1c1e22}.end{font-weight:bold}",
    );
    for (prefix, colors) in [("c", &COLORS), ("s", &STEPS)] {
        for (index, color) in colors.iter().enumerate() {
            // Writing into a String cannot fail.
            let _ = write!(
                style,
                ".l.{prefix}{index}{{stroke:{color}}}.{prefix}{index}{{fill:{color}}}.l.{prefix}{index}{{fill:none}}"
            );
        }
    }
    let Some((_, rest)) = svg.split_once("<svg viewBox=\"0 0 ") else { return svg.to_owned() };
    let (size, rest) = rest.split_once('"').unwrap_or((rest, ""));
    let [width, height] =
        [0, 1].map(|at| size.split(' ').nth(at).and_then(|side| side.parse().ok()).unwrap_or(WIDTH));
    let (width, height): (f64, f64) = (width + 2.0 * MARGIN, height + 2.0 * MARGIN);
    let open = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" font-family=\"sans-serif\" viewBox=\"-{MARGIN} -{MARGIN} {width} {height}\""
    );
    format!("{open}{}", rest.replacen('>', &format!("><style>{style}</style>"), 1))
}

/// Text for SVG and HTML, attributes too. Characters that XML has no place for become U+FFFD.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\t' | '\n' => out.push(' '),
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// At most `most` characters, the middle left out: names of runs differ at both ends.
pub fn short(text: &str, most: usize) -> String {
    let chars: Vec<char> = text.chars().collect();
    if chars.len() <= most {
        return text.to_owned();
    }
    let (head, tail) = ((most - 1).div_ceil(2), (most - 1) / 2);
    chars[..head].iter().chain(&['…']).chain(&chars[chars.len() - tail..]).collect()
}

/// How wide `text` is at 11.5 pixels in a bold font, roughly and rather too wide: enough to leave room for
/// it.
fn width(text: &str) -> f64 {
    let one = |c: char| match c {
        'i' | 'j' | 'l' | 't' | 'f' | 'I' | '.' | ',' | ':' | ';' | '\'' | '|' | '!' | '(' | ')' | ' '
        | '·' => 4.6,
        'm' | 'w' | 'M' | 'W' | '@' | '%' | '&' | '…' | '—' | '−' | '<' | '>' => 11.5,
        c if c.is_ascii_lowercase() || c.is_ascii_digit() => 7.6,
        // Chinese, Japanese, Korean: a full em.
        c if crate::util::terminal::width(c.encode_utf8(&mut [0; 4])) == 2 => 12.0,
        c if ('⁰'..='⁹').contains(&c) || ['¹', '²', '³', '⁻'].contains(&c) => 5.2,
        _ => 9.0,
    };
    text.chars().map(one).sum()
}
