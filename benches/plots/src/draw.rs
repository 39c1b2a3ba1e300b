//! A diagram of two curves, both axes logarithmic.

use std::error::Error;
use std::path::Path;

use plotters::prelude::*;

use crate::Point;

type Curve = (&'static str, RGBColor, fn(&Point) -> f64);

const CURVES: [Curve; 2] = [
    (
        "call to another thread and back",
        RGBColor(31, 119, 180),
        |point| point.call,
    ),
    (
        "hand-over to another task and back",
        RGBColor(214, 39, 40),
        |point| point.wake,
    ),
];

pub fn curves(path: &Path, idle: &str, points: &[Point]) -> Result<(), Box<dyn Error>> {
    let most = points.iter().map(|point| point.count).max().unwrap_or(1);
    let figures = points.iter().flat_map(|point| [point.call, point.wake]);
    let highest = figures.fold(1_000.0, f64::max) * 2.0;
    let area = SVGBackend::new(path, (640, 400)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(
            format!("one reactor, beside so many {idle}"),
            ("sans-serif", 18),
        )
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d(
            (1.0..(most as f64).max(10.0)).log_scale(),
            (10.0..highest).log_scale(),
        )?;
    chart
        .configure_mesh()
        .x_desc(idle)
        .y_desc("ns")
        .x_label_formatter(&|count| format!("{count:.0}"))
        .y_label_formatter(&|figure| format!("{figure:.0}"))
        .light_line_style(WHITE)
        .draw()?;
    for (name, color, figure) in CURVES {
        let line = points
            .iter()
            .map(|point| (point.count as f64, figure(point)));
        chart
            .draw_series(LineSeries::new(line.clone(), color.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], color.stroke_width(2)));
        chart.draw_series(line.map(|at| Circle::new(at, 3, color.filled())))?;
    }
    chart
        .configure_series_labels()
        .background_style(WHITE)
        .border_style(BLACK)
        .position(SeriesLabelPosition::UpperLeft)
        .draw()?;
    area.present()?;
    Ok(())
}
