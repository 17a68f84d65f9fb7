// Prints what the browser's engine offers by itself, so that tests/web can compare it with what the server offers.
import { COLOURS } from "../src/local/session";
import { PRESETS } from "../src/local/presets";
import { TYPES } from "../src/local/types";

console.log(JSON.stringify({ presets: PRESETS, types: TYPES, colours: COLOURS }));
