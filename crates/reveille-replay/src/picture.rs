//! The trade-off curves as a picture (SVG), both axes logarithmic.

use std::fmt::Write;

use crate::compare::{Comparison, Curve, Measure};

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 64.0;
const BOTTOM: f64 = 48.0;
const TOP: f64 = 36.0;
const RIGHT: f64 = 16.0;

/// Colours that people of most kinds of sight can tell apart (Okabe and Ito).
const COLOURS: [&str; 4] = ["#0072b2", "#e69f00", "#009e73", "#cc79a7"];
const OWN_COLOUR: &str = "#d55e00";

/// The comparisons beside each other.
pub fn svg(comparisons: &[&Comparison]) -> String {
    let width = WIDTH * comparisons.len() as f64;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {HEIGHT:.0}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{width:.0}\" height=\"{HEIGHT:.0}\" fill=\"white\"/>\n"
    );
    for (place, comparison) in comparisons.iter().enumerate() {
        let _ = writeln!(out, "<g transform=\"translate({:.0} 0)\">", WIDTH * place as f64);
        panel(&mut out, comparison);
        out.push_str("</g>\n");
    }
    out.push_str("</svg>\n");
    out
}

/// One axis: from the logarithm of a value to a place.
struct Axis {
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let (low, high) = values
            .filter(|value| *value > 0.0)
            .map(f64::ln)
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        if low < high { Self { low, high, from, to } } else { Self { low: 0.0, high: 1.0, from, to } }
    }

    fn place(&self, value: f64) -> f64 {
        let share = (value.max(1e-9).ln() - self.low) / (self.high - self.low);
        self.from + share.clamp(0.0, 1.0) * (self.to - self.from)
    }

    /// 1, 2, 5, 10, … within it.
    fn ticks(&self) -> Vec<f64> {
        let decades = (-9..=12).filter(|decade| 10_f64.powi(*decade + 1).ln() > self.low);
        let values = decades.flat_map(|decade| [1.0, 2.0, 5.0].map(|digit| digit * 10_f64.powi(decade)));
        values.filter(|value| (self.low..=self.high).contains(&value.ln())).take(40).collect()
    }
}

fn panel(out: &mut String, comparison: &Comparison) {
    // The range around the budgets is what matters.
    let budgets = || comparison.budgets.iter().map(|budget| budget.held);
    let (low, high) = (budgets().fold(f64::INFINITY, f64::min) / 2.0, budgets().fold(0.0, f64::max) * 1.5);
    let shown = |curve: &Curve| -> Vec<(f64, f64)> {
        let inside =
            curve.points.iter().filter(|point| (low..=high).contains(&point.held) && point.lost > 0.0);
        inside.map(|point| (point.held, point.lost)).collect()
    };
    let all: Vec<(f64, f64)> = comparison.curves.iter().flat_map(shown).collect();
    let x = Axis::over(all.iter().map(|point| point.0), LEFT, WIDTH - RIGHT);
    let y = Axis::over(all.iter().map(|point| point.1), HEIGHT - BOTTOM, TOP);
    let (held, lost) = match comparison.measure {
        Measure::ColdStarts => ("idle-warm hours", "cold starts"),
        Measure::Delay => ("GiB-hours held", "seconds of added delay"),
        Measure::PricedDelay => ("GiB-hours held, idle vCPUs as memory", "seconds of added delay"),
    };
    for tick in x.ticks() {
        let (at, end) = (x.place(tick), HEIGHT - BOTTOM);
        let _ = writeln!(out, "<path d=\"M{at:.1} {TOP} V{end}\" stroke=\"#eee\"/>");
        let _ =
            writeln!(out, "<text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{tick}</text>", end + 16.0);
    }
    for tick in y.ticks() {
        let (at, end) = (y.place(tick), WIDTH - RIGHT);
        let _ = writeln!(out, "<path d=\"M{LEFT} {at:.1} H{end}\" stroke=\"#eee\"/>");
        let _ = writeln!(
            out,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{tick}</text>",
            LEFT - 6.0,
            at + 4.0
        );
    }
    let middle = WIDTH / 2.0;
    let _ =
        writeln!(out, "<text x=\"{middle}\" y=\"{:.1}\" text-anchor=\"middle\">{held}</text>", HEIGHT - 12.0);
    let _ = writeln!(
        out,
        "<text x=\"{middle}\" y=\"20\" text-anchor=\"middle\">{lost}, {}</text>",
        comparison.of
    );
    let own = comparison.curves.len().saturating_sub(1);
    for (index, curve) in comparison.curves.iter().enumerate() {
        let colour = if index == own { OWN_COLOUR } else { COLOURS[index % COLOURS.len()] };
        let places = shown(curve);
        let line: Vec<String> = places
            .iter()
            .map(|(held, lost)| format!("{:.1},{:.1}", x.place(*held), y.place(*lost)))
            .collect();
        let (points, width) = (line.join(" "), if index == own { 2.5 } else { 1.5 });
        let _ = writeln!(
            out,
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\"/>"
        );
        let (at, text) = (TOP + 16.0 * (index + 1) as f64, WIDTH - RIGHT - 110.0);
        let _ = writeln!(
            out,
            "<path d=\"M{:.1} {:.1} h20\" stroke=\"{colour}\" stroke-width=\"3\"/>",
            text - 26.0,
            at - 4.0
        );
        let _ = writeln!(out, "<text x=\"{text:.1}\" y=\"{at:.1}\">{}</text>", curve.policy);
    }
}
