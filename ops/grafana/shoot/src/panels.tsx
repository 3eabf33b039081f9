// Grafana's own components for the kinds of panels that presift's dashboards have. Where Grafana's panel plugins (which are in no
// package) only hand options on, so does this.
import {
  applyFieldOverrides, DataFrame, dateTime, getDisplayValueAlignmentFactors, getFieldDisplayValues, GrafanaTheme2, TimeRange, VizOrientation,
} from '@grafana/data';
import { BarGauge, BigValue, TimeSeries, useTheme2, VizRepeater } from '@grafana/ui';
import type { Panel } from '@grafana/schema';
import { Span } from './prometheus';
import { fieldOptions } from './registries';

interface Drawn { panel: Panel; frames: DataFrame[]; span: Span; width: number; height: number }

export function Drawing({ panel, frames, span, width, height }: Drawn) {
  const theme = useTheme2();
  const data = applyFieldOverrides({
    data: frames,
    fieldConfig: panel.fieldConfig as never,
    fieldConfigRegistry: fieldOptions,
    replaceVariables: (text) => text,
    theme,
    timeZone: 'utc',
  });
  if (panel.type === 'timeseries') {
    if (data.length === 0) {
      return <div style={{ height, display: 'grid', placeContent: 'center', fontSize: 18 }}>No data</div>;
    }
    return <Lines {...{ panel, data, span, width, height, theme }} />;
  }
  return <Values {...{ panel, data, width, height, theme }} />;
}

function Lines({ panel, data, span, width, height }: { panel: Panel; data: DataFrame[]; span: Span; width: number; height: number }) {
  const range: TimeRange = { from: dateTime(span.from * 1000), to: dateTime(span.to * 1000), raw: { from: 'now-1h', to: 'now' } };
  const legend = (panel.options as { legend: never }).legend;
  return (
    <TimeSeries frames={data} timeRange={range} timeZone="utc" width={width} height={height} legend={legend}>
      {() => null}
    </TimeSeries>
  );
}

interface Shown { panel: Panel; data: DataFrame[]; width: number; height: number; theme: GrafanaTheme2 }

function Values({ panel, data, width, height, theme }: Shown) {
  const options = panel.options as Record<string, never>;
  const values = getFieldDisplayValues({
    fieldConfig: panel.fieldConfig as never,
    reduceOptions: options.reduceOptions,
    replaceVariables: (text) => text,
    theme, data, sparkline: panel.type === 'stat' && options.graphMode !== 'none', timeZone: 'utc',
  });
  const orientation = panel.type === 'bargauge' ? VizOrientation.Horizontal : VizOrientation.Auto;
  return (
    <VizRepeater
      source={values} getValues={() => values} width={width} height={height} orientation={orientation} renderCounter={0}
      minVizHeight={16} minVizWidth={75} getAlignmentFactors={getDisplayValueAlignmentFactors}
      renderValue={({ value, width, height, count, alignmentFactors }) => panel.type === 'bargauge' ? (
        <BarGauge value={value.display} display={value.view?.getFieldDisplayProcessor(value.colIndex!)} field={value.field}
          width={width} height={height} orientation={orientation} displayMode={options.displayMode}
          showUnfilled={options.showUnfilled} valueDisplayMode={options.valueMode} text={options.text} alignmentFactors={alignmentFactors} theme={theme} isOverflow={false} />
      ) : (
        <BigValue value={value.display} count={count} sparkline={value.sparkline} colorMode={options.colorMode}
          graphMode={options.graphMode} textMode={options.textMode} text={options.text} alignmentFactors={alignmentFactors} theme={theme} width={width} height={height} />
      )}
    />
  );
}
