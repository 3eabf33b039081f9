// One dashboard, drawn from its JSON as Grafana would: rows and panels where gridPos says. `window.drawn` counts panels that are done.
import '@fontsource/inter/latin-400.css';
import '@fontsource/inter/latin-500.css';
import { createTheme, DataFrame, ThemeContext } from '@grafana/data';
import { GlobalStyles, PanelChrome } from '@grafana/ui';
import type { Dashboard, Panel } from '@grafana/schema';
import { useEffect, useState } from 'react';
import { createRoot } from 'react-dom/client';
import { Drawing } from './panels';
import { ask, Span, Target } from './prometheus';

const WIDTH = 1600, MARGIN = 16, CELL_HEIGHT = 30, GAP = 8;
const CELL = (WIDTH - 2 * MARGIN + GAP) / 24;

function Placed({ panel, span }: { panel: Panel; span: Span }) {
  const [frames, setFrames] = useState<DataFrame[] | null>(null);
  const [trouble, setTrouble] = useState('');
  const { x, y, w, h } = panel.gridPos!;
  const width = w * CELL - GAP, height = h * (CELL_HEIGHT + GAP) - GAP;
  useEffect(() => {
    Promise.all((panel.targets as unknown as Target[]).map((target) => ask(target, span, Math.round(width))))
      .then((found) => setFrames(found.flat()), (error) => setTrouble(`${error}`));
  }, []);
  useEffect(() => {
    if (frames || trouble) {
      const w = window as never as { drawn: number; empty: string[] };
      w.drawn = (w.drawn ?? 0) + 1;
      const values = frames?.some((frame) => frame.fields[1].values.some((value) => value !== null));
      w.empty = [...(w.empty ?? []), ...(values ? [] : [`${panel.title} ${trouble}`])];
    }
  }, [frames, trouble]);
  return (
    <div style={{ position: 'absolute', left: MARGIN + x * CELL, top: y * (CELL_HEIGHT + GAP), width, height }}>
      <PanelChrome title={panel.title} description={panel.description} width={width} height={height}>
        {(innerWidth, innerHeight) => frames === null ? <>{trouble}</> : (
          <Drawing panel={panel} frames={frames} span={span} width={innerWidth} height={innerHeight} />
        )}
      </PanelChrome>
    </div>
  );
}

function Page({ dashboard, span }: { dashboard: Dashboard; span: Span }) {
  const panels = dashboard.panels as Panel[];
  const rows = Math.max(...panels.map((panel) => panel.gridPos!.y + panel.gridPos!.h));
  const theme = createTheme({ colors: { mode: 'dark' } });
  return (
    <ThemeContext.Provider value={theme}>
      <GlobalStyles />
      <div style={{ padding: '14px 16px 2px', fontSize: 18, fontWeight: 500, display: 'flex', justifyContent: 'space-between' }}>
        <span>{dashboard.title}</span>
        <span style={{ fontSize: 12, color: theme.colors.text.secondary }}>
          {new Date(span.from * 1000).toISOString().slice(0, 19).replace('T', ' ')} to{' '}
          {new Date(span.to * 1000).toISOString().slice(11, 19)} UTC
        </span>
      </div>
      <div style={{ position: 'relative', width: WIDTH, height: rows * (CELL_HEIGHT + GAP) + MARGIN, marginTop: 6 }}>
        {panels.map((panel) => panel.type === 'row' ? (
          <div key={panel.id} style={{ position: 'absolute', left: MARGIN, top: panel.gridPos!.y * (CELL_HEIGHT + GAP) + 6, fontWeight: 500 }}>
            ⌄ {panel.title}
          </div>
        ) : <Placed key={panel.id} panel={panel} span={span} />)}
      </div>
    </ThemeContext.Provider>
  );
}

async function main() {
  const asked = new URLSearchParams(location.search);
  const dashboard: Dashboard = await (await fetch(`/dashboards/${asked.get('name')}.json`)).json();
  const span = { from: Number(asked.get('from')), to: Number(asked.get('to')) };
  (window as never as { panels: number }).panels = (dashboard.panels as Panel[]).filter((panel) => panel.type !== 'row').length;
  createRoot(document.getElementById('page')!).render(<Page dashboard={dashboard} span={span} />);
}

void main();
