// The page's address: it holds the session, so that a reload returns to it, and at first the key, which is taken out.
import { element } from "./dom";

const STORE = "voxsam-key";

/** The session or demo named in the address (#session=…, #demo), and the key, from there or as kept for this tab. */
export function readAddress(): { session: string | null; demo: boolean; key: string | null } {
  const fields = new URLSearchParams(location.hash.slice(1));
  const key = fields.get("key");
  if (key) {
    sessionStorage.setItem(STORE, key);
    writeAddress(fields.get("session"));
  }
  return { session: fields.get("session"), demo: fields.has("demo"), key: key ?? sessionStorage.getItem(STORE) };
}

/** Put the session into the address. The browser's Back returns to earlier ones, which reloads the page. */
export function writeAddress(session: string | null): void {
  const address = location.pathname + location.search + (session ? `#${new URLSearchParams({ session })}` : "");
  const before = new URLSearchParams(location.hash.slice(1)).get("session");
  if (session && before && session !== before) history.pushState(null, "", address);
  else history.replaceState(null, "", address);
}

/** Reload the page when the browser's Back, or the user, changes the session in the address. */
export function followAddress(): void {
  window.addEventListener("hashchange", () => location.reload());
}

let asked: Promise<string> | null = null;

/** Ask for the server's key; several requests that need it at once ask once. */
export function askForKey(wrong: boolean): Promise<string> {
  asked ??= new Promise<string>((resolve) => {
    const dialog = element<HTMLDialogElement>("ask-key");
    const input = element<HTMLInputElement>("key");
    const text = wrong ? "The server did not take this key." : "It was printed when the server was started, or ask who runs it.";
    element("ask-key-text").textContent = text;
    input.value = "";
    dialog.oncancel = (event) => event.preventDefault(); // nothing works without it
    dialog.onclose = () => {
      asked = null;
      sessionStorage.setItem(STORE, input.value);
      resolve(input.value);
    };
    dialog.showModal();
    input.focus();
  });
  return asked;
}
