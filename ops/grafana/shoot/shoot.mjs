// Takes a picture of each dashboard: node shoot.mjs --prometheus http://127.0.0.1:9090 --seconds 900 --scrape 5 --out DIR
// Bundles the page, serves it on loopback with Prometheus behind it, opens it in Chromium (CHROMIUM, default /usr/bin/chromium).
// Fails where a panel is in trouble or empty; --allow-empty tells them only.
import { createServer } from 'node:http';
import { readFile, readdir } from 'node:fs/promises';
import { dirname, extname, join, basename } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { build } from 'esbuild';
import puppeteer from 'puppeteer-core';

const HERE = dirname(fileURLToPath(import.meta.url));
const GRAFANA = join(HERE, 'node_modules', '@grafana', 'ui', 'dist', 'public');
const { values: asked } = parseArgs({
  options: {
    prometheus: { type: 'string', default: 'http://127.0.0.1:9090' },
    seconds: { type: 'string', default: '3600' },
    until: { type: 'string' },
    scrape: { type: 'string', default: '15' },
    dashboards: { type: 'string', default: join(HERE, '..', 'dashboards') },
    out: { type: 'string', default: join(HERE, '..', 'screenshots') },
    'allow-empty': { type: 'boolean', default: false },
  },
});
const TYPES = { '.js': 'text/javascript', '.css': 'text/css', '.json': 'application/json', '.html': 'text/html', '.svg': 'image/svg+xml' };
const fonts = Object.fromEntries(['.svg', '.png', '.woff', '.woff2', '.ttf'].map((kind) => [kind, 'dataurl']));

async function bundled() {
  const done = await build({
    entryPoints: [join(HERE, 'src', 'page.tsx')], bundle: true, format: 'esm', splitting: true, outdir: '/', write: false,
    jsx: 'automatic', minify: true, define: { 'process.env.NODE_ENV': '"production"' }, loader: fonts, logLevel: 'error',
  });
  return new Map(done.outputFiles.map((file) => [file.path, file.contents]));
}

async function answer(files, request, response) {
  const { pathname } = new URL(request.url, 'http://localhost');
  if (pathname.startsWith('/api/v1/')) {
    const reply = await fetch(asked.prometheus + request.url);
    response.writeHead(reply.status, { 'content-type': 'application/json' }).end(await reply.text());
    return;
  }
  const icon = pathname.match(/^\/public\/build\/(img\/icons\/[\w/-]+\.svg)$/);
  const body = icon ? await readFile(join(GRAFANA, icon[1])) : pathname === '/' ? await readFile(join(HERE, 'index.html'))
    : pathname.startsWith('/dashboards/') ? await readFile(join(asked.dashboards, basename(pathname)))
      : files.get(pathname);
  response.writeHead(body ? 200 : 404, { 'content-type': TYPES[extname(pathname) || '.html'] ?? 'text/plain' }).end(body);
}

async function picture(browser, address, name) {
  const page = await browser.newPage();
  page.on('pageerror', (error) => console.error(`${name}: ${error}`));
  await page.setViewport({ width: 1600, height: 900 });
  const to = Number(asked.until ?? Math.floor(Date.now() / 1000));
  const query = new URLSearchParams({ name, from: to - Number(asked.seconds), to, scrape: asked.scrape });
  await page.goto(`${address}/?${query}`);
  await page.waitForFunction('window.panels && window.drawn >= window.panels', { timeout: 60_000 });
  await page.evaluate(() => document.fonts.ready);
  await new Promise((resolve) => setTimeout(resolve, 1000)); // the lines are drawn on canvases a frame later
  const path = join(asked.out, `${name}.png`);
  await page.screenshot({ path, fullPage: true });
  const empty = await page.evaluate('window.empty');
  console.log(`${path}${empty.length ? `; without data: ${empty.join(', ')}` : ''}`);
  await page.close();
  return empty.length;
}

const files = await bundled();
const server = createServer((request, response) => answer(files, request, response).catch((error) => {
  response.writeHead(502).end(`${error}`);
}));
await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
const browser = await puppeteer.launch({ executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: ['--no-sandbox'] });
let empty = 0;
for (const file of (await readdir(asked.dashboards)).filter((each) => each.endsWith('.json')).sort()) {
  empty += await picture(browser, `http://127.0.0.1:${server.address().port}`, basename(file, '.json'));
}
await browser.close();
server.close();
process.exit(empty && !asked['allow-empty'] ? 1 : 0);
