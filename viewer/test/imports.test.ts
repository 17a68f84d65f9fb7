// The page's parts: imports make no circle, and only the server's engine knows HTTP; the local one fetches files of the page's own folder.
/// <reference types="vite/client" />
import { describe, expect, it } from "vitest";

const FILES = import.meta.glob<string>("../src/**/*.ts", { query: "?raw", import: "default", eager: true });
const FETCHES = /\bfetch\(/;
const SERVER = /XMLHttpRequest|\/api\b|api\/|EventSource|sessions\//;

function importsOf(path: string, text: string): string[] {
  const folder = path.slice(0, path.lastIndexOf("/"));
  return [...text.matchAll(/from "(\.[^"]+(?<!\.json))"/g)].map(([, to]) => new URL(`${folder}/${to}.ts`.slice(2), "file:///").pathname.slice(1));
}

/** A circle of imports, as a path that ends where it begins; null if there is none. */
function circle(graph: Map<string, string[]>): string[] | null {
  const done = new Set<string>();
  const walk = (node: string, path: string[]): string[] | null => {
    if (path.includes(node)) return [...path.slice(path.indexOf(node)), node];
    if (done.has(node)) return null;
    done.add(node);
    for (const next of graph.get(node) ?? []) {
      const found = walk(next, [...path, node]);
      if (found) return found;
    }
    return null;
  };
  for (const node of graph.keys()) {
    const found = walk(node, []);
    if (found) return found;
  }
  return null;
}

describe("imports", () => {
  const graph = new Map(Object.entries(FILES).map(([path, text]) => [path.replace("../", ""), importsOf(path, text)]));

  it("are found", () => {
    expect(graph.get("src/main.ts")).toContain("src/engine/choice.ts");
    for (const targets of graph.values()) for (const target of targets) expect([...graph.keys()]).toContain(target);
  });

  it("make no circle", () => {
    expect(circle(graph)).toBeNull();
    const planted = new Map([...graph, ["src/page/view.ts", ["src/page/panel.ts"]]]);
    expect(circle(planted)).toContain("src/page/panel.ts");
  });

  it("lead to the server's engine from the choice of one alone", () => {
    const users = [...graph].filter(([, targets]) => targets.includes("src/engine/server.ts")).map(([path]) => path);
    expect(users).toEqual(["src/engine/choice.ts"]);
    const using = (words: RegExp) => Object.entries(FILES).filter(([, text]) => words.test(text)).map(([path]) => path);
    expect(using(SERVER)).toEqual(["../src/engine/server.ts"]);
    expect(using(FETCHES).filter((path) => !path.startsWith("../src/local/"))).toEqual(["../src/engine/server.ts"]);
  });
});
