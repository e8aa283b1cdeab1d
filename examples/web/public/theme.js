// Before the first paint, so that a page in the other theme does not flash. src/page/theme.ts does the rest.
try {
  const theme = localStorage.getItem("dsmr-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // A browser that keeps nothing: its own theme it is.
}
