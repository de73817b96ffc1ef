//! Lines over steps, as SVG that takes its colours from the page around it.

use crate::axis::Axis;
use crate::escape::escaped;
use crate::numbers::significant;
use std::fmt::Write as _;

/// How a series is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Drawn {
    /// A thin, pale line: what another series smooths.
    Pale,
    /// A line.
    Line,
    /// A line with a dot at each point: few points that matter each.
    Dots,
}

/// Numbers over steps.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Series {
    /// What the legend calls it.
    pub name: String,
    /// In order of steps. None, and what is not finite, breaks the line.
    pub points: Vec<(u64, Option<f64>)>,
    /// How it is drawn.
    pub drawn: Drawn,
    /// Which of the page's [`COLOURS`] it has; beyond them they repeat.
    pub colour: usize,
}

/// What the vertical axis shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Floor {
    /// Everything from 0, or from below if there are negative numbers.
    Zero,
    /// Everything from the least number.
    Least,
    /// The same, in factors if the greatest number is more than [`WIDE`] times the least.
    Factors,
}

/// Where numbers differ more, the small ones would lie on the axis.
const WIDE: f64 = 20.0;

/// A plot over steps.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Chart {
    /// Above it.
    pub title: String,
    /// What the vertical axis shows.
    pub floor: Floor,
    /// The last one is drawn over the others.
    pub series: Vec<Series>,
}

/// How many colours a page has for series.
pub(crate) const COLOURS: usize = 7;

const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 236.0;
/// Around the area that the axes enclose.
const LEFT: f64 = 52.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 26.0;
/// More points than this are thinned out: no screen shows them.
const MOST: usize = 700;
/// Numbers beyond are left out: differences of such numbers may be infinite.
const LIMIT: f64 = 1e300;

impl Chart {
    /// A `<figure>` with the title, a legend if there is more than one series, and the plot, at least up to a step.
    /// None without any number.
    pub fn figure(&self, last: u64) -> Option<String> {
        let numbers = || {
            let points = self.series.iter().flat_map(|series| &series.points);
            points.filter_map(|(step, number)| Some((*step, finite(*number)?)))
        };
        let last = numbers().map(|point| point.0).max()?.max(last);
        let (mut least, mut greatest) = (f64::INFINITY, f64::NEG_INFINITY);
        for (_, number) in numbers() {
            (least, greatest) = (least.min(number), greatest.max(number));
        }
        if self.floor == Floor::Zero {
            (least, greatest) = (least.min(0.0), greatest.max(0.0));
        }
        let in_factors =
            self.floor == Floor::Factors && least > 1.0 / LIMIT && greatest > WIDE * least;
        let frame = Frame {
            x: Axis::steps(last.max(1)),
            y: match in_factors {
                true => Axis::factors(least, greatest),
                false => Axis::new(least, greatest),
            },
        };
        let title = escaped(&self.title);
        let note = if in_factors {
            " <span class=\"quiet\">logarithmic</span>"
        } else {
            ""
        };
        let mut out = format!("<figure>\n<figcaption>{title}{note}</figcaption>\n");
        if self.series.len() > 1 {
            out += "<p class=\"legend\">";
            for series in &self.series {
                let class = class(series);
                let name = escaped(&series.name);
                let _ = write!(out, "<span class=\"{class}\"><i></i>{name}</span> ");
            }
            out += "</p>\n";
        }
        let _ = writeln!(
            out,
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title} over steps\">"
        );
        frame.draw(&mut out);
        for series in &self.series {
            frame.series(&mut out, series);
        }
        out += "</svg>\n</figure>\n";
        Some(out)
    }
}

fn finite(number: Option<f64>) -> Option<f64> {
    number.filter(|number| number.abs() <= LIMIT)
}

fn class(series: &Series) -> String {
    let drawn = match series.drawn {
        Drawn::Pale => "pale",
        Drawn::Line => "line",
        Drawn::Dots => "dots",
    };
    format!("c{} {drawn}", series.colour % COLOURS)
}

/// The two axes of a plot.
struct Frame {
    x: Axis,
    y: Axis,
}

impl Frame {
    fn place_x(&self, step: f64) -> f64 {
        LEFT + self.x.share(step) * (WIDTH - LEFT - RIGHT)
    }

    fn place_y(&self, number: f64) -> f64 {
        HEIGHT - BOTTOM - self.y.share(number) * (HEIGHT - TOP - BOTTOM)
    }

    /// Lines at round numbers, and the numbers.
    fn draw(&self, out: &mut String) {
        let (right, low) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for number in self.y.lines() {
            let y = self.place_y(number);
            let _ = writeln!(
                out,
                "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{right}\"/><text x=\"{:.1}\" y=\"{:.1}\" class=\"end\">{}</text>",
                LEFT - 6.0,
                y + 4.0,
                self.y.label(number)
            );
        }
        for step in self.x.lines() {
            let x = self.place_x(step);
            let _ = writeln!(
                out,
                "<path class=\"tick\" d=\"M{x:.1} {low}v4\"/><text x=\"{x:.1}\" y=\"{:.1}\" class=\"middle\">{}</text>",
                low + 17.0,
                self.x.label(step)
            );
        }
        let _ = writeln!(out, "<path class=\"axis\" d=\"M{LEFT} {low}H{right}\"/>");
    }

    fn series(&self, out: &mut String, series: &Series) {
        let mut path = String::new();
        let mut dots = String::new();
        let points = thinned(&series.points);
        let number = |at: usize| points.get(at).and_then(|point| finite(point.1));
        for (at, (step, _)) in points.iter().enumerate() {
            let Some(value) = number(at) else { continue };
            let (x, y) = (self.place_x(*step as f64), self.place_y(value));
            let joined = at > 0 && number(at - 1).is_some();
            let _ = write!(path, "{}{x:.1} {y:.1}", if joined { 'L' } else { 'M' });
            let alone = !joined && number(at + 1).is_none();
            if series.drawn == Drawn::Dots {
                let shown = significant(value);
                let _ = write!(
                    dots,
                    "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"><title>step {step}: {shown}</title></circle>"
                );
            } else if alone {
                // A line of one point would not be seen.
                let _ = write!(dots, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"1.5\"/>");
            }
        }
        if !path.is_empty() {
            let class = class(series);
            let _ = writeln!(out, "<g class=\"{class}\"><path d=\"{path}\"/>{dots}</g>");
        }
    }
}

/// The least and the greatest of every so many points, in their order, so that no spike is lost.
fn thinned(points: &[(u64, Option<f64>)]) -> Vec<(u64, Option<f64>)> {
    if points.len() <= MOST {
        return points.to_vec();
    }
    let size = (2 * points.len()).div_ceil(MOST);
    let mut kept = Vec::with_capacity(MOST + 2);
    for chunk in points.chunks(size) {
        let finite = || {
            let points = chunk.iter().enumerate();
            points.filter_map(|(at, point)| Some((at, finite(point.1)?)))
        };
        let least = finite().min_by(|one, other| one.1.total_cmp(&other.1));
        let greatest = finite().max_by(|one, other| one.1.total_cmp(&other.1));
        match (least, greatest) {
            (Some((low, _)), Some((high, _))) => {
                kept.push(chunk[low.min(high)]);
                if low != high {
                    kept.push(chunk[low.max(high)]);
                }
            }
            _ => kept.push(chunk[0]),
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn series(drawn: Drawn, points: &[(u64, Option<f64>)]) -> Series {
        Series {
            name: "loss".to_owned(),
            points: points.to_vec(),
            drawn,
            colour: 1,
        }
    }

    fn figure(floor: Floor, series: Vec<Series>) -> Option<String> {
        let title = "Loss < 2".to_owned();
        Chart {
            title,
            floor,
            series,
        }
        .figure(0)
    }

    /// The path of a series.
    fn path(svg: &str) -> &str {
        let rest = svg.split_once("<g class=\"c1").expect("a series").1;
        let rest = rest.split_once("d=\"").expect("a path").1;
        rest.split_once('"').expect("its end").0
    }

    #[test]
    fn points_lie_where_the_axes_say() {
        let points = [(0, Some(4.0)), (50, Some(1.5)), (100, Some(2.0))];
        let svg = figure(Floor::Zero, vec![series(Drawn::Line, &points)]).expect("a figure");
        // The axes end at step 100 and at 4: 52 to 406, and 210 to 10.
        assert_eq!(path(&svg), "M52.0 10.0L229.0 135.0L406.0 110.0");
        assert!(
            svg.contains("<figcaption>Loss &lt; 2</figcaption>"),
            "{svg}"
        );
        assert!(!svg.contains("legend"), "{svg}");
        let svg = figure(Floor::Least, vec![series(Drawn::Dots, &points)]).expect("a figure");
        // From 1.5 to 4 in steps of 0.5.
        assert_eq!(path(&svg), "M52.0 10.0L229.0 210.0L406.0 170.0");
        assert!(svg.contains("<title>step 50: 1.5</title>"), "{svg}");
        assert!(
            svg.contains(">1.5</text>") && svg.contains(">4.0</text>"),
            "{svg}"
        );
    }

    #[test]
    fn what_is_missing_breaks_the_line() {
        let points = [
            (1, Some(1.0)),
            (2, Some(2.0)),
            (3, None),
            (4, Some(f64::NAN)),
            (5, Some(2.0)),
            (6, Some(f64::INFINITY)),
            (10, Some(0.0)),
        ];
        let svg = figure(Floor::Zero, vec![series(Drawn::Line, &points)]).expect("a figure");
        assert_eq!(path(&svg), "M87.4 110.0L122.8 10.0M229.0 10.0M406.0 210.0");
        // A point without neighbours is a dot.
        assert_eq!(svg.matches("<circle").count(), 2);
        let nothing = series(Drawn::Line, &[(1, None), (2, Some(f64::NAN))]);
        assert_eq!(figure(Floor::Zero, vec![nothing]), None);
        assert_eq!(figure(Floor::Zero, Vec::new()), None);
    }

    #[test]
    fn one_point_and_equal_points_are_drawn() {
        for number in [0.0, 2.0, -3e-7, 1e299] {
            for points in [
                vec![(1, Some(number))],
                vec![(0, Some(number)), (9, Some(number))],
            ] {
                for floor in [Floor::Zero, Floor::Least] {
                    let svg = figure(floor, vec![series(Drawn::Line, &points)]).expect("a figure");
                    assert!(
                        !svg.contains("NaN") && !svg.contains("inf"),
                        "{number}: {svg}"
                    );
                }
            }
        }
        let svg = figure(Floor::Least, vec![series(Drawn::Line, &[(1, Some(2.0))])]);
        let svg = svg.expect("a figure");
        // Around 2: from 1.8 to 2.2.
        assert_eq!(path(&svg), "M406.0 110.0");
    }

    #[test]
    fn many_points_are_thinned_out_and_spikes_stay() {
        let number = |step: u64| {
            if step == 54_321 {
                50.0
            } else {
                (step % 7) as f64
            }
        };
        let points: Vec<_> = (1..=100_000)
            .map(|step| (step, Some(number(step))))
            .collect();
        let kept = thinned(&points);
        assert!(kept.len() <= MOST + 2, "{}", kept.len());
        assert!(kept.contains(&(54_321, Some(50.0))));
        assert!(kept.is_sorted_by_key(|point| point.0));
        let gaps: Vec<_> = (1..=5000).map(|step| (step, None)).collect();
        assert!(thinned(&gaps).iter().all(|point| point.1.is_none()));
    }
}
