// Theme and time zone: kept in a cookie, so that the server draws the page right from the start.

const root = document.documentElement;

function keep(name, value) {
  document.cookie = `headrace_${name}=${value}; path=/; max-age=31536000; samesite=lax`;
  root.dataset[name] = value;
  document.dispatchEvent(new CustomEvent(`${name}change`));
}

export const isUtc = () => root.dataset.zone === "utc";
export const toggleZone = () => keep("zone", isUtc() ? "local" : "utc");
export const zoneName = () => (isUtc() ? "UTC" : localZone());

export function localZone() {
  const parts = new Intl.DateTimeFormat("en-GB", { timeZoneName: "short" }).formatToParts(new Date());
  return parts.find((part) => part.type === "timeZoneName")?.value ?? "local";
}

const dark = matchMedia("(prefers-color-scheme: dark)");
dark.addEventListener("change", () => document.dispatchEvent(new CustomEvent("themechange")));

export const isDark = () => root.dataset.theme === "dark" || (root.dataset.theme === "auto" && dark.matches);
export const toggleTheme = () => keep("theme", isDark() ? "light" : "dark");

const PAINTS = ["text", "muted", "grid", "line", "series", "series-soft", "series-2", "anomaly", "surface"];

// The colours that canvases need, as the style sheet has them now.
export function paints() {
  const style = getComputedStyle(root);
  return Object.fromEntries(PAINTS.map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
}
