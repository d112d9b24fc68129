//! Measurements as pictures.

use std::{error::Error, path::Path};

use plotters::prelude::*;

use crate::{
    clock::{MILLI, SECOND},
    measure::{AWAY, BEFORE, Outage, Reads, Visibility, WINDOW, quantile},
};

type Drawn = Result<(), Box<dyn Error>>;

const SIZE: (u32, u32) = (900, 420);
const COLORS: [RGBColor; 6] = [
    RGBColor(31, 119, 180),
    RGBColor(44, 160, 44),
    RGBColor(148, 103, 189),
    RGBColor(23, 190, 207),
    RGBColor(255, 127, 14),
    RGBColor(214, 39, 40),
];

/// Which share of locations has seen a write how long after its acknowledgement.
pub(crate) fn visibility(file: &Path, rows: &[Visibility]) -> Drawn {
    let root = SVGBackend::new(file, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption("A write becomes visible at 300 locations", ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(50)
        .build_cartesian_2d(0.0..700.0, 0.0..100.0)?;
    chart.configure_mesh().x_desc("milliseconds after its acknowledgement").y_desc("% of locations").draw()?;
    for (row, color) in rows.iter().zip(COLORS) {
        let points = (0..=200).map(|i| {
            let share = f64::from(i) / 200.0;
            (quantile(&row.delays, share) as f64 / MILLI as f64, share * 100.0)
        });
        let label = format!("{} writes/s, {:.0} % lost", row.rate, row.loss * 100.0);
        chart
            .draw_series(LineSeries::new(points, color.stroke_width(2)))?
            .label(label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
    }
    chart.configure_series_labels().position(SeriesLabelPosition::LowerRight).background_style(WHITE).draw()?;
    root.present()?;
    Ok(())
}

/// How many reads go past each tier as caches fill.
pub(crate) fn reads(file: &Path, reads: &Reads) -> Drawn {
    let root = SVGBackend::new(file, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let total = reads.tenths.iter().map(|tenth| tenth.client).sum::<u64>() as f64 / 1e6;
    let mut chart = ChartBuilder::on(&root)
        .caption("Reads that are asked on, 330 locations, 1,000,000 keys by Zipf's law (0.99)", ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..total, (0.001..1.0).log_scale())?;
    chart.configure_mesh().x_desc("million reads by clients").y_desc("per client read").draw()?;
    let lines = [
        ("reach a region", reads.tenths.iter().map(|tenth| tenth.regional).collect::<Vec<_>>()),
        ("reach the centre", reads.tenths.iter().map(|tenth| tenth.central).collect()),
        ("reach the origin", reads.tenths.iter().map(|tenth| tenth.origin).collect()),
    ];
    for ((label, asked), color) in lines.into_iter().zip(COLORS) {
        let mut sum = 0;
        let points = reads.tenths.iter().zip(asked).map(move |(tenth, asked)| {
            sum += tenth.client;
            (sum as f64 / 1e6, (asked as f64 / tenth.client as f64).max(0.001))
        });
        chart
            .draw_series(LineSeries::new(points, color.stroke_width(2)))?
            .label(label)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
    }
    chart.configure_series_labels().background_style(WHITE).draw()?;
    root.present()?;
    Ok(())
}

/// What reaches the centre before, during and after its outage.
pub(crate) fn outages(file: &Path, outages: &[Outage]) -> Drawn {
    let root = SVGBackend::new(file, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let most = outages.iter().flat_map(|outage| &outage.load).max().copied().unwrap_or(1);
    let seconds = (WINDOW / SECOND) as f64;
    let windows = outages.iter().map(|outage| outage.load.len()).max().unwrap_or(1);
    let mut chart = ChartBuilder::on(&root)
        .caption("Requests that reach the centre, 300 locations, through an outage of 2 h 28 min", ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..windows as f64 * seconds / 60.0, 0.0..most as f64 / seconds * 1.1)?;
    chart.configure_mesh().x_desc("minutes").y_desc("requests per second").draw()?;
    let span = [(BEFORE / SECOND) as f64 / 60.0, ((BEFORE + AWAY) / SECOND) as f64 / 60.0];
    chart.draw_series([Rectangle::new(
        [(span[0], 0.0), (span[1], most as f64 / seconds * 1.1)],
        BLACK.mix(0.06).filled(),
    )])?;
    for (outage, color) in outages.iter().zip([COLORS[0], COLORS[5], COLORS[4]]) {
        let points = outage
            .load
            .iter()
            .enumerate()
            .map(|(window, load)| (window as f64 * seconds / 60.0, *load as f64 / seconds));
        chart
            .draw_series(LineSeries::new(points, color.stroke_width(1)))?
            .label(format!("the centre was {}", outage.how.name()))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
    }
    chart.configure_series_labels().background_style(WHITE).draw()?;
    root.present()?;
    Ok(())
}
