// Before anything is painted, so that a page that is to be dark is never light for a moment.
try {
  const kept = localStorage.getItem("dpcdsl-report-theme");
  if (kept === "light" || kept === "dark") document.documentElement.dataset.theme = kept;
} catch {
  // Where nothing can be kept, the system's preference holds.
}
