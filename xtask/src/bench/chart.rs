//! A report as an SVG picture: bars of cost in multiples of the baseline. The text depends on the figures alone, and
//! the colours on whether the reader's page is light or dark.

use std::fmt::Write as _;

use super::stats::{Report, Row};

const WIDTH: usize = 860;
const LABELS: usize = 285;
const BARS: usize = 370;
const LINE: usize = 22;
/// Longest bar, in multiples of the baseline, where most bars are shorter; what is longer is cut and says so.
const LONGEST: f64 = 2.5;

const STYLE: &str = "\
text{font:13px sans-serif;fill:#1f2328}.h{font-weight:600}.s{fill:#59636e;font-size:12px}\
.b{fill:#9aa4af}.o{fill:#1a7f37}.l{fill:#bf8700}.n{stroke:#59636e;stroke-dasharray:3 3}\
@media (prefers-color-scheme:dark){text{fill:#e6edf3}.s{fill:#9198a1}.b{fill:#656c76}.o{fill:#3fb950}.l{fill:#d29922}\
.n{stroke:#9198a1}}";

/// The picture.
pub(super) fn draw(report: &Report) -> String {
    let lines: usize = report.cases.iter().map(|case| case.rows.len() + 2).sum();
    let height = 46 + lines * LINE;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" \
         height=\"{height}\" role=\"img\">\n<title>{title}</title>\n<style>{STYLE}</style>\n\
         <text class=\"h\" x=\"10\" y=\"22\">{title}</text>\n",
        title = escaped(&report.title)
    );
    let mut y = 46;
    for case in &report.cases {
        let void = if case.void { ", void" } else { "" };
        writeln!(
            text,
            "<text class=\"h\" x=\"10\" y=\"{}\">{}</text>\n<text class=\"s\" x=\"{LABELS}\" y=\"{}\">x baseline; {}, \
             A/A {:.2}{void}</text>",
            y + 15,
            escaped(&case.name),
            y + 15,
            escaped(report.unit),
            case.aa
        )
        .ok();
        y += LINE;
        let scale = scale(&case.rows);
        let one = LABELS + length(1.0, scale);
        writeln!(
            text,
            "<line class=\"n\" x1=\"{one}\" x2=\"{one}\" y1=\"{y}\" y2=\"{}\"/>",
            y + case.rows.len() * LINE
        )
        .ok();
        for row in &case.rows {
            bar(&mut text, row, y, scale);
            y += LINE;
        }
        y += LINE;
    }
    text + "</svg>\n"
}

fn bar(text: &mut String, row: &Row, y: usize, scale: f64) {
    let long = length(row.times, scale);
    let cut = if row.times > scale { " (cut)" } else { "" };
    writeln!(
        text,
        "<text x=\"10\" y=\"{}\">{}</text>\n<rect class=\"{}\" x=\"{LABELS}\" y=\"{}\" width=\"{long}\" \
         height=\"14\"/>\n<text x=\"{}\" y=\"{}\">{:.2}<tspan class=\"s\" dx=\"6\">{:.0} ns{cut}</tspan></text>",
        y + 15,
        escaped(&row.name),
        class(&row.name),
        y + 4,
        LABELS + long + 6,
        y + 15,
        row.times,
        row.min
    )
    .ok();
}

/// Ours, limits, and all others.
fn class(name: &str) -> &'static str {
    match name {
        name if name.starts_with("lb") => "o",
        name if name.starts_with("limit") || name.starts_with("ideal") => "l",
        _ => "b",
    }
}

/// The multiple that the longest bar stands for: three of four bars are whole.
fn scale(rows: &[Row]) -> f64 {
    let mut times: Vec<f64> = rows.iter().map(|row| row.times).collect();
    times.sort_by(f64::total_cmp);
    times.get(times.len() * 3 / 4).map_or(LONGEST, |upper| upper * 1.2).max(LONGEST)
}

fn length(times: f64, scale: f64) -> usize {
    (times.clamp(0.0, scale) / scale * BARS as f64).round().max(1.0) as usize
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::stats::{Case, Report};
    use super::draw;

    #[test]
    fn the_picture_is_the_same_each_time_and_shows_every_arm() {
        let arms = ["plain", "plain again", "x", "y", "lb <tc>"].map(String::from);
        let costs = [10.0, 10.0, 9.0, 8.0, 99.0].map(|cost| vec![cost; 4]);
        let mut report = Report::new("S2", "live", "a & b", "ns");
        report.cases.push(Case::new("1 flow", &arms, &costs, None));
        let picture = draw(&report);
        assert_eq!(picture, draw(&report));
        assert!(
            picture.contains("lb &lt;tc&gt;") && picture.contains("(cut)") && picture.contains("a &amp; b")
        );
        assert_eq!(picture.matches("<rect").count(), 5);
    }
}
