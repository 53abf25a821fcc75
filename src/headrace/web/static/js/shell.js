// The header of every page: theme, time zone.

import { byId, setText } from "./dom.js";
import { isDark, isUtc, localZone, toggleTheme, toggleZone } from "./prefs.js";

function show() {
  setText(byId("zone"), isUtc() ? "UTC" : localZone());
  byId("zone").setAttribute("aria-label", `Times are in ${isUtc() ? "UTC" : `local time, ${localZone()}`}. Switch`);
  setText(byId("theme-text"), isDark() ? "Use light colours" : "Use dark colours");
}

byId("zone").addEventListener("click", toggleZone);
byId("theme").addEventListener("click", toggleTheme);
document.addEventListener("zonechange", show);
document.addEventListener("themechange", show);
show();
