// Asks Prometheus what a panel's targets ask, and gives Grafana's data frames: what Grafana's backend does for its own page.
import { createDataFrame, DataFrame, FieldType } from '@grafana/data';

export interface Target { refId: string; expr: string; legendFormat?: string }
export interface Span { from: number; to: number } // Unix seconds

// Grafana asks for as many points as a panel is wide, at least one scrape apart; $__rate_interval is four scrapes or one step more.
export const SCRAPE_S = Number(new URLSearchParams(location.search).get('scrape') ?? 15);

export async function ask(target: Target, span: Span, width: number): Promise<DataFrame[]> {
  const step = Math.max(SCRAPE_S, Math.ceil((span.to - span.from) / width));
  const expr = target.expr
    .replaceAll('$__rate_interval', `${Math.max(4 * SCRAPE_S, step + SCRAPE_S)}s`)
    .replaceAll('$__range', `${Math.round(span.to - span.from)}s`);
  const from = Math.ceil(span.from / step) * step;
  const query = new URLSearchParams({ query: expr, start: `${from}`, end: `${span.to}`, step: `${step}` });
  const reply = await (await fetch(`/api/v1/query_range?${query}`)).json();
  if (reply.status !== 'success') {
    throw new Error(`${reply.error} (${expr})`);
  }
  return reply.data.result.map((series: Series) => frame(target, series, from, span.to, step));
}

interface Series { metric: Record<string, string>; values: Array<[number, string]> }

// A point for each step; a step that has none is null, as Grafana's backend makes it.
function frame(target: Target, series: Series, from: number, to: number, step: number): DataFrame {
  const known = new Map(series.values.map(([at, value]) => [at, Number(value)]));
  const times: number[] = [];
  for (let at = from; at <= to; at += step) {
    times.push(at);
  }
  const name = legend(target, series.metric);
  return createDataFrame({
    refId: target.refId,
    name,
    fields: [
      { name: 'Time', type: FieldType.time, values: times.map((at) => at * 1000), config: { interval: step * 1000 } },
      {
        name: 'Value',
        type: FieldType.number,
        labels: series.metric,
        values: times.map((at) => (Number.isFinite(known.get(at) ?? NaN) ? known.get(at) : null)),
        config: { displayNameFromDS: name },
      },
    ],
  });
}

function legend(target: Target, labels: Record<string, string>): string {
  return (target.legendFormat ?? '').replace(/\{\{\s*(.+?)\s*\}\}/g, (_, label) => labels[label] ?? '');
}
