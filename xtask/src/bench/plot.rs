//! Line plots as SVG.

use lowrank::report::escaped;

/// Points that a line joins.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// What the legend calls it.
    pub name: String,
    /// In any order.
    pub points: Vec<(f64, f64)>,
}

/// A plot with both axes from 0.
#[derive(Debug, Clone, PartialEq)]
pub struct Plot {
    /// Above it.
    pub title: String,
    /// Below the horizontal axis.
    pub x: String,
    /// Beside the vertical axis.
    pub y: String,
    /// The lines.
    pub series: Vec<Series>,
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 440.0;
/// Around the area that the axes enclose: left, top, right, bottom.
const MARGIN: (f64, f64, f64, f64) = (70.0, 40.0, 20.0, 55.0);
/// Colours that readers with any eyes tell apart, with dashes for those who print.
const STROKES: [(&str, &str); 6] = [
    ("#0072b2", "none"),
    ("#d55e00", "6 3"),
    ("#009e73", "2 3"),
    ("#cc79a7", "8 3 2 3"),
    ("#e69f00", "4 2"),
    ("#000000", "1 2"),
];

impl Plot {
    /// The file's text.
    pub fn svg(&self) -> String {
        let all = || self.series.iter().flat_map(|series| &series.points);
        let (step_x, end_x) = ticks(all().map(|point| point.0).fold(0.0, f64::max));
        let (step_y, end_y) = ticks(all().map(|point| point.1).fold(0.0, f64::max));
        let (left, top, right, bottom) = MARGIN;
        let x = |value: f64| left + value / end_x * (WIDTH - left - right);
        let y = |value: f64| HEIGHT - bottom - value / end_y * (HEIGHT - top - bottom);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
             <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
        );
        let mut text = |x: f64, y: f64, anchor: &str, more: &str, words: &str| {
            let words = escaped(words);
            svg.push_str(&format!(
                "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\"{more}>{words}</text>\n"
            ));
        };
        text(
            WIDTH / 2.0,
            22.0,
            "middle",
            " font-size=\"15\"",
            &self.title,
        );
        text(
            (left + WIDTH - right) / 2.0,
            HEIGHT - 12.0,
            "middle",
            "",
            &self.x,
        );
        let middle = (top + HEIGHT - bottom) / 2.0;
        let turned = format!(" transform=\"rotate(-90 16 {middle:.1})\"");
        text(16.0, middle, "middle", &turned, &self.y);
        for at in grid(step_x, end_x) {
            text(x(at), HEIGHT - bottom + 16.0, "middle", "", &label(at));
        }
        for at in grid(step_y, end_y) {
            text(left - 6.0, y(at) + 4.0, "end", "", &label(at));
        }
        for (place, series) in self.series.iter().enumerate() {
            let row = top + 14.0 + 16.0 * place as f64;
            text(left + 44.0, row, "start", "", &series.name);
        }
        let mut line = |from: (f64, f64), to: (f64, f64), stroke: &str| {
            svg.push_str(&format!(
                "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" {stroke}/>\n",
                from.0, from.1, to.0, to.1
            ));
        };
        for at in grid(step_x, end_x) {
            line((x(at), y(0.0)), (x(at), y(end_y)), "stroke=\"#dddddd\"");
        }
        for at in grid(step_y, end_y) {
            line((x(0.0), y(at)), (x(end_x), y(at)), "stroke=\"#dddddd\"");
        }
        line((x(0.0), y(0.0)), (x(end_x), y(0.0)), "stroke=\"black\"");
        line((x(0.0), y(0.0)), (x(0.0), y(end_y)), "stroke=\"black\"");
        for (place, _) in self.series.iter().enumerate() {
            let (colour, dashes) = STROKES[place % STROKES.len()];
            let stroke =
                format!("stroke=\"{colour}\" stroke-width=\"2\" stroke-dasharray=\"{dashes}\"");
            let row = top + 10.0 + 16.0 * place as f64;
            line((left + 10.0, row), (left + 38.0, row), &stroke);
        }
        for (place, series) in self.series.iter().enumerate() {
            let (colour, dashes) = STROKES[place % STROKES.len()];
            let mut points = series.points.clone();
            points.sort_by(|one, other| one.0.total_cmp(&other.0));
            let places: Vec<String> = points
                .iter()
                .map(|point| format!("{:.1},{:.1}", x(point.0), y(point.1)))
                .collect();
            svg.push_str(&format!(
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" stroke-dasharray=\"{dashes}\"/>\n",
                places.join(" ")
            ));
            for point in points {
                svg.push_str(&format!(
                    "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.5\" fill=\"{colour}\"/>\n",
                    x(point.0),
                    y(point.1)
                ));
            }
        }
        svg.push_str("</svg>\n");
        svg
    }
}

/// A round distance between four to eight lines, and the first line at or beyond the greatest value.
fn ticks(greatest: f64) -> (f64, f64) {
    if !(greatest > 0.0 && greatest.is_finite()) {
        return (1.0, 1.0);
    }
    let size = 10f64.powf((greatest / 8.0).log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * size);
    let step = steps
        .into_iter()
        .find(|step| greatest / step <= 8.0)
        .unwrap_or(steps[3]);
    (step, (greatest / step).ceil() * step)
}

fn grid(step: f64, end: f64) -> impl Iterator<Item = f64> {
    let count = (end / step).round() as usize;
    (0..=count).map(move |at| at as f64 * step)
}

fn label(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plot() -> Plot {
        let series = |name: &str, points: &[(f64, f64)]| Series {
            name: name.to_owned(),
            points: points.to_vec(),
        };
        Plot {
            title: "time < memory & more".to_owned(),
            x: "tokens".to_owned(),
            y: "seconds".to_owned(),
            series: vec![
                series("batches", &[(512.0, 1.5), (256.0, 0.75), (4096.0, 12.0)]),
                series("lengths", &[(128.0, 0.4), (2048.0, 7.0)]),
            ],
        }
    }

    #[test]
    fn every_point_is_drawn_where_it_belongs() {
        let svg = plot().svg();
        assert_eq!(svg.matches("<circle").count(), 5);
        assert_eq!(svg.matches("<polyline").count(), 2);
        // Axes end at 5000 and 12: the last point is at the top.
        let x = 70.0 + 4096.0 / 5000.0 * 630.0;
        assert!(
            svg.contains(&format!("<circle cx=\"{x:.1}\" cy=\"40.0\"")),
            "{svg}"
        );
        // Points are joined from left to right.
        let line = svg
            .lines()
            .find(|line| line.starts_with("<polyline"))
            .expect("one");
        let first = line
            .split('"')
            .nth(1)
            .and_then(|points| points.split(' ').next());
        assert_eq!(
            first,
            Some(
                format!(
                    "{:.1},{:.1}",
                    70.0 + 256.0 / 5000.0 * 630.0,
                    385.0 - 0.75 / 12.0 * 345.0
                )
                .as_str()
            )
        );
    }

    /// Every element is closed, in order, and no character is left that XML reserves.
    #[test]
    fn it_is_well_formed() {
        let svg = plot().svg();
        let mut open = Vec::new();
        for part in svg.split('<').skip(1) {
            let (tag, rest) = part.split_once('>').expect("a tag ends");
            assert!(!rest.contains('>'), "{part}");
            assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
            if let Some(name) = tag.strip_prefix('/') {
                assert_eq!(open.pop(), Some(name));
            } else if !tag.ends_with('/') {
                open.push(tag.split(' ').next().expect("a name"));
            }
        }
        assert!(open.is_empty(), "{open:?}");
        assert!(svg.contains("time &lt; memory &amp; more"));
    }

    #[test]
    fn lines_stand_at_round_numbers() {
        assert_eq!(ticks(12.0), (2.0, 12.0));
        assert_eq!(ticks(4096.0), (1000.0, 5000.0));
        assert_eq!(ticks(0.0), (1.0, 1.0));
        assert_eq!(label(0.25), "0.25");
        assert_eq!(label(3000.0), "3000");
        let empty = Plot {
            series: Vec::new(),
            ..plot()
        };
        assert!(empty.svg().ends_with("</svg>\n"));
    }
}
