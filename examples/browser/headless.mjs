// Asks one question in a headless Chromium and prints what came as one JSON line:
//   node headless.mjs BUNDLE [--question TEXT] [--tokens N] [--threads N] [--screenshot FILE]
import { accessSync, constants } from "node:fs";
import { delimiter, join } from "node:path";
import { parseArgs } from "node:util";
import puppeteer from "puppeteer-core";
import { serve } from "./server.mjs";

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    question: { type: "string" },
    tokens: { type: "string", default: "20" },
    threads: { type: "string", default: "1" },
    screenshot: { type: "string" },
    timeout: { type: "string", default: "180" },
  },
});

function chromium() {
  if (process.env.CHROMIUM) return process.env.CHROMIUM;
  for (const name of ["chromium", "chromium-browser", "google-chrome"]) {
    for (const folder of process.env.PATH.split(delimiter)) {
      try {
        accessSync(join(folder, name), constants.X_OK);
        return join(folder, name);
      } catch { /* look in the next one */ }
    }
  }
  throw new Error("no Chromium found: install it, or set CHROMIUM to its path");
}

const server = await serve(positionals[0]);
const browser = await puppeteer.launch({
  executablePath: chromium(),
  args: process.getuid?.() === 0 ? ["--no-sandbox"] : [], // root has no sandbox
});
try {
  const page = await browser.newPage();
  await page.setViewport({ width: 900, height: 640 });
  const problems = [];
  page.on("pageerror", (error) => problems.push(String(error)));
  page.on("console", (message) => message.type() === "error" && problems.push(message.text()));
  page.on("requestfailed", (request) => problems.push(`${request.url()}: ${request.failure()?.errorText}`));
  const wait = async (state) => {
    const seen = await page.waitForFunction(
      (wanted) => ["error", wanted].includes(document.body.dataset.state) && document.body.dataset.state,
      { timeout: 1000 * Number(values.timeout) },
      state,
    );
    if ((await seen.jsonValue()) === "error") throw new Error(await page.$eval("#status", (node) => node.textContent));
  };
  await page.goto(`${server.url}?threads=${values.threads}`);
  await wait("ready");
  if (values.question !== undefined) await page.$eval("#question", (node, text) => (node.value = text), values.question);
  await page.$eval("#tokens", (node, count) => (node.value = count), values.tokens);
  await page.click("#ask");
  await wait("ready");
  const result = JSON.parse(await page.$eval("#answer", (node) => node.dataset.result));
  const shown = await page.$eval("#answer", (node) => node.textContent);
  const versions = JSON.parse(await page.$eval("body", (node) => node.dataset.versions));
  if (values.screenshot) await page.screenshot({ path: values.screenshot });
  console.log(JSON.stringify({ ...result, shown, versions, browser: await browser.version(), problems }));
} finally {
  await browser.close();
  server.close();
}
